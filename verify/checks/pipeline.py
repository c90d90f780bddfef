"""Is a pipeline plan one? Its keys against the modules that ran, and the order they ran in.

Nothing here infers: what ran, and what carries the hidden states, is read from the trace.
"""

from collections.abc import Iterable

from torch import nn

from planner.frontend.load import base_prefix
from planner.ir.findings import Finding, Place, Severity, as_written
from planner.ir.graph import Graph
from planner.ir.live import stream
from planner.ir.plan import Plan, PpEntry, join


def check_pp(model: nn.Module, graph: Graph, plan: Plan) -> tuple[Finding, ...]:
    """Findings PP301 to PP304 of a pipeline plan, or PL104 where there is none."""
    prefix = base_prefix(model)
    entries = [(join(prefix, entry.module), entry) for entry in plan.pp] + [(e.module, e) for e in plan.head_pp]
    paths = {path for path, _ in model.named_modules()}
    missing = [_missing(path, paths) for path, _ in entries if path not in paths]
    if missing or not plan.pp:
        found = tuple(missing) or (_no_plan(),)
    else:
        keys = [path for path, _ in entries]
        found = (*_order(graph, keys), *_dropped(graph, keys), *_not_passed(graph, entries))
    return tuple(as_written(finding, prefix) for finding in found)


def _no_plan() -> Finding:
    return Finding(
        "PL104",
        Severity.ERROR,
        "there is no pipeline plan, so there is nothing to verify",
        why="without one, no module belongs to any stage",
        found="no base_model_pp_plan",
        needed="the plan that `plan suggest` prints",
    )


def _missing(path: str, paths: Iterable[str]) -> Finding:
    name = path.rpartition(".")[2]
    near = sorted(other for other in paths if other.rpartition(".")[2] == name)
    return Finding(
        "PP301",
        Severity.ERROR,
        f'the pipeline plan names "{path}", which is no module',
        Place(entry=path),
        why="a key names a module of the base model, or of the head class",
        found=path,
        needed=near[0] if near else "a module that exists",
    )


def _first_run(graph: Graph) -> dict[str, int]:
    """Every module, and the list it is a member of, by when it first ran."""
    found: dict[str, int] = {}
    for position, call in enumerate(graph.calls):
        found.setdefault(call.module, position)
        found.setdefault(call.module.rpartition(".")[0], position)
    return found


def _order(graph: Graph, keys: list[str]) -> list[Finding]:
    ran = _first_run(graph)
    known = [key for key in keys if key in ran]
    right = sorted(known, key=lambda key: ran[key])
    for have, should in zip(known, right, strict=True):
        if have != should:
            return [
                Finding(
                    "PP302",
                    Severity.ERROR,
                    f'"{have}" stands where "{should}" runs',
                    Place(entry=have, module=have),
                    why="stages run the keys in the order of the plan",
                    found=", ".join(known),
                    needed=", ".join(right),
                )
            ]
    return []


def _dropped(graph: Graph, keys: list[str]) -> list[Finding]:
    """Modules with parameters whose result carries the hidden states, beside a key, that no key covers."""
    flow = stream(graph)
    scopes = {key.rpartition(".")[0] for key in keys}
    owned = {module.path for module in graph.modules if _has_parameters(graph, module.path)}
    found: dict[str, Finding] = {}
    for call in graph.calls:
        path = call.module
        covered = any(path == key or path.startswith(f"{key}.") or key.startswith(f"{path}.") for key in keys)
        beside = path.rpartition(".")[0] in scopes
        if path and beside and not covered and path in owned and not flow.isdisjoint(call.outputs):
            found.setdefault(path, _drop(path))
    return list(found.values())


def _has_parameters(graph: Graph, path: str) -> bool:
    return any(m.parameters and (m.path == path or m.path.startswith(f"{path}.")) for m in graph.modules)


def _drop(path: str) -> Finding:
    return Finding(
        "PP304",
        Severity.ERROR,
        f'no key of the pipeline plan covers "{path}", through which the hidden states run',
        Place(entry=path, module=path),
        why="a module outside the plan runs on no stage, or on every one",
        found="no key",
        needed=f'"{path}" at its place in the plan',
    )


def _not_passed(graph: Graph, entries: list[tuple[str, PpEntry]]) -> list[Finding]:
    flow = stream(graph)
    found = []
    for path, entry in entries:
        calls = [c for c in graph.calls if c.module == path or c.module.rpartition(".")[0] == path]
        takes = any(number in flow for call in calls for _, number in call.arguments)
        if (takes and not entry.inputs) or not entry.outputs:
            found.append(
                Finding(
                    "PP303",
                    Severity.ERROR,
                    f'"{path}" lists no {"inputs" if entry.outputs else "outputs"}, and the hidden states run through it',
                    Place(entry=path, module=path),
                    why="what a key does not list is not passed between stages",
                    found="an empty list",
                    needed="the name of the hidden states",
                )
            )
    return found
