"""Is a pipeline plan one? Its keys against the modules that ran, the order they ran in, and what its cuts must carry.

Nothing here infers: what ran, what carries the hidden states, and what is live across a cut, is read from the trace.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from inspect import signature

from torch import nn

from shardproof.planner.ir.dataflow import Cut, Live, Role, live_across, read_behind, stream, unlisted
from shardproof.planner.ir.findings import Fault, Finding, Place, Severity, as_written
from shardproof.planner.ir.graph import Graph
from shardproof.planner.ir.plan import Plan, PpEntry, join
from shardproof.planner.loading.carried_plan import base_prefix
from shardproof.planner.tracing.module_tree import layer_stack, same_member
from shardproof.verify.proof.pipeline_names import check_names


def check_pp(model: nn.Module, graph: Graph, plan: Plan, *, bounds: Sequence[int] = ()) -> tuple[Finding, ...]:
    """Findings PP301 to PP304 of a pipeline plan, or PL104 where there is none.

    `bounds` are the layers that the stages after the first begin with; where none are given, a cut that no stage can be
    made at is a warning as long as there are others.
    """
    prefix = base_prefix(model)
    entries = [(join(prefix, entry.module), entry) for entry in plan.pp] + [(e.module, e) for e in plan.head_pp]
    modules = dict(model.named_modules())
    missing = [_missing(path, modules) for path, _ in entries if path not in modules]
    if missing or not plan.pp:
        found = tuple(missing) or (_no_plan(),)
    else:
        found = tuple(_of_the_keys(model, graph, [path for path, _ in entries]))
        found = (
            found or tuple(_not_listed(modules, graph, entries)) or tuple(_of_the_cuts(model, graph, entries, bounds))
        )
        if all(finding.severity is Severity.WARNING for finding in found):
            found += tuple(check_names(modules, entries))
    return tuple(as_written(finding, prefix) for finding in found)


def _runs(modules: Mapping[str, nn.Module], path: str, call: str) -> bool:
    """Whether a call is of a key's module, or of a member of its list."""
    return call == path or (call.rpartition(".")[0] == path and isinstance(modules[path], nn.ModuleList))


def _of_the_keys(model: nn.Module, graph: Graph, keys: list[str]) -> list[Finding]:
    """Every module once, in order, the layers as one list."""
    modules = dict(model.named_modules())
    owners = [key for key in keys if isinstance(modules.get(key.rpartition(".")[0]), nn.ModuleList)]
    if owners:
        return [_member(owners[0])]
    stack = layer_stack(model, keys)
    if stack is not None and (twice := same_member(model, stack)) is not None:
        return [_one_module(stack, *twice)]
    found = [*_twice(keys), *_order(graph, keys), *_dropped(graph, keys, stack or "")]
    return found or ([] if stack else [_no_stack()])


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


def _member(key: str) -> Finding:
    stack = key.rpartition(".")[0]
    return Finding(
        "PP304",
        Severity.ERROR,
        f'"{key}" is one of the layers, and a key names all of them',
        Place(entry=key, module=stack),
        why="layers are dealt out to the stages from their list",
        found=key,
        needed=stack,
    )


def _one_module(stack: str, first: int, second: int) -> Finding:
    return Finding(
        "PP304",
        Severity.ERROR,
        f'"{stack}.{first}" and "{stack}.{second}" are one module, which cannot be on one stage alone',
        Place(entry=stack, module=stack),
        why="the stages together must be the model, with every layer once",
        found="a module that stands twice in the list of layers",
        needed="a module for each place",
        fault=Fault.MODEL,
    )


def _twice(keys: list[str]) -> list[Finding]:
    for position, key in enumerate(keys):
        for other in keys[:position]:
            if _holds(key, other) or _holds(other, key):
                return [
                    Finding(
                        "PP304",
                        Severity.ERROR,
                        f'"{other}" and "{key}" name the same module, which would run twice',
                        Place(entry=key, module=key),
                        why="the stages together must be the model, with every module once",
                        found=f"{other}, {key}",
                        needed="one of them",
                    )
                ]
    return []


def _no_stack() -> Finding:
    return Finding(
        "PP304",
        Severity.UNDECIDED,
        "the pipeline plan names no list of layers",
        Place(),
        why="stages are cut from a list of layers",
        found="none",
        needed="the ModuleList that holds the layers",
    )


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


def _dropped(graph: Graph, keys: list[str], stack: str) -> list[Finding]:
    """Modules with parameters whose result carries the hidden states, beside a key, that no key covers.

    One that runs on both sides of the layers is on every stage: no key can say so.
    """
    flow = stream(graph)
    scopes = {key.rpartition(".")[0] for key in keys}
    beside = {
        child: None
        for call in graph.calls
        if not flow.isdisjoint(call.outputs)
        for scope in scopes
        if (child := _child(call.module, scope)) and not any(_holds(child, key) for key in keys)
    }
    owned = {child for child in beside for m in graph.modules if m.parameters and _holds(child, m.path)}
    return [_drop(child) for child in beside if child in owned and not _on_both_sides(graph, child, stack)]


def _on_both_sides(graph: Graph, child: str, stack: str) -> bool:
    ran = [at for at, call in enumerate(graph.calls) if _holds(child, call.module)]
    layers = [at for at, call in enumerate(graph.calls) if call.module.startswith(f"{stack}.")]
    if not (ran and layers) or ran[0] >= layers[0]:
        return False
    return layers[-1] < ran[-1] or read_behind(graph, child, stack)


def _child(module: str, scope: str) -> str:
    """The child of `scope` that a module is or lies in; empty where it lies elsewhere."""
    inside = f"{scope}." if scope else ""
    name = module[len(inside) :].partition(".")[0] if module.startswith(inside) else ""
    return f"{inside}{name}" if name else ""


def _holds(path: str, other: str) -> bool:
    return path == other or other.startswith(f"{path}.")


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


def _not_listed(modules: Mapping[str, nn.Module], graph: Graph, entries: list[tuple[str, PpEntry]]) -> list[Finding]:
    flow = stream(graph)
    found = []
    for path, entry in entries:
        calls = [call for call in graph.calls if _runs(modules, path, call.module)]
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


def _of_the_cuts(
    model: nn.Module, graph: Graph, entries: list[tuple[str, PpEntry]], bounds: Sequence[int]
) -> Iterator[Finding]:
    """What some cut between the layers would have to carry and cannot, or does not."""
    keys = [path for path, _ in entries]
    stack = layer_stack(model, keys)
    assert stack is not None
    at, layers = keys.index(stack), model.get_submodule(stack)
    assert isinstance(layers, nn.ModuleList)
    live = {number: live_across(graph, Cut(stack, number, tuple(keys[:at]))) for number in range(1, len(layers))}
    missed = {number: first for number, values in live.items() if (first := _first_missed(values))}
    yield from _forbidden(graph, stack, missed, bounds, free=len(missed) < len(live))
    parameters = list(signature(type(layers[0]).forward).parameters)[1:] if len(layers) else []
    told: set[str] = set()
    for number, values in live.items():
        for value in unlisted(values, entries[at][1].inputs, parameters) if number not in missed else ():
            name = next(entry.argument for entry in value.entrances if entry.argument not in entries[at][1].inputs)
            if name not in told:
                told.add(name)
                yield _unnamed(graph, stack, entries[at][1], name, value)


def _first_missed(values: Iterable[Live]) -> Live | None:
    return next((value for value in values if value.role is Role.MISSED), None)


def _forbidden(
    graph: Graph, stack: str, missed: Mapping[int, Live], bounds: Sequence[int], *, free: bool
) -> Iterator[Finding]:
    """Cuts that no stage can be made at: wrong where one is asked for, or where no other is left; else a warning each."""
    if not missed:
        return
    asked = [number for number in missed if number in bounds]
    if not free or asked:
        number = asked[0] if asked else next(iter(missed))
        yield _miss(graph, missed[number], stack, str(number))
    elif not bounds:
        first = next(iter(missed.values()))
        yield replace(_miss(graph, first, stack, spans(list(missed))), severity=Severity.WARNING)


def spans(numbers: Sequence[int]) -> str:
    """Numbers in ascending order, with runs as ranges: 1, 19 to 34."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][-1] + 1:
            found[-1] = [found[-1][0], number]
        else:
            found.append([number])
    return ", ".join(" to ".join(map(str, run)) for run in found)


def _made_in(graph: Graph, live: Live) -> str:
    return graph.values[live.value].name or "" if live.made is None else graph.ops[live.made].module


def _miss(graph: Graph, live: Live, stack: str, number: str) -> Finding:
    used = graph.ops[live.used]
    module = used.module
    if live.made == live.used:
        layer = Cut(stack, 0).number(module)
        module = module if layer is None else f"{stack}.{layer}"
        what, found = f"{module} runs again behind it", "a module of an earlier stage"
    else:
        made = "the weight" if live.made is None else f"what {graph.ops[live.made].target} makes in"
        found = f"{made} {_made_in(graph, live) or 'the model'}"
        what = f"{found} is needed behind it, by {used.target} in {module or 'the model'}"
    return Finding(
        "PP303",
        Severity.ERROR,
        f'"{stack}" cannot be cut before layer {number}: {what}',
        Place(entry=stack, module=module or None, source=used.source),
        why="it needs weights of an earlier stage, and no argument of a layer can bring what they give",
        found=found,
        needed="what enters the layers as an argument",
        fault=Fault.MODEL,
    )


def _unnamed(graph: Graph, stack: str, entry: PpEntry, name: str, live: Live) -> Finding:
    made = graph.ops[live.made] if live.made is not None else None
    where = (made.module if made else graph.values[live.value].name) or "the model"
    return Finding(
        "PP303",
        Severity.ERROR,
        f'"{stack}" does not list "{name}", which its layers get from {where}, on the first stage only',
        Place(entry=stack, module=where, source=made.source if made else None),
        why="what derives from weights of an earlier stage cannot be made anew behind a cut",
        found=", ".join(entry.inputs) or "nothing",
        needed=", ".join((*entry.inputs, name)),
    )


def check_chunks(chunks: Sequence[range], depth: int) -> tuple[Finding, ...]:
    """Finding PP304 where the layers of the stages are not each layer once, in order."""
    ran = [layer for chunk in chunks for layer in chunk]
    if ran == list(range(depth)):
        return ()
    layer = next(layer for layer in range(depth) if ran.count(layer) != 1)
    what = "is on no stage" if layer not in ran else f"is on {ran.count(layer)} stages"
    return (
        Finding(
            "PP304",
            Severity.ERROR,
            f"layer {layer} {what}",
            Place(),
            why="the stages together must be the model, with every layer once",
            found=", ".join(f"{one.start} to {one.stop - 1}" for one in chunks),
            needed=f"layers 0 to {depth - 1}, each on one stage",
        ),
    )
