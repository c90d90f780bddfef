"""Is a pipeline plan right? Compare its keys with the modules that ran, their order, and the values that stages have to send.

Nothing here infers: which modules ran, which values carry the hidden states, and which are live across a cut is read from the
trace.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from inspect import signature

from torch import nn

from shardproof.planner.ir.dataflow import Live, Role, layer_number, live_across_each, read_behind, stream, unlisted
from shardproof.planner.ir.findings import Finding, Place, Severity, as_written
from shardproof.planner.ir.graph import Graph
from shardproof.planner.ir.plan import Plan, PpEntry, join
from shardproof.planner.loading.carried_plan import base_prefix
from shardproof.planner.tracing.module_tree import layer_stack, same_member
from shardproof.verify.findings import pl104, pp301, pp302, pp303, pp304
from shardproof.verify.proof.pipeline_names import check_names


def check_pp(model: nn.Module, graph: Graph, plan: Plan, *, bounds: Sequence[int] = ()) -> tuple[Finding, ...]:
    """Findings PP301 to PP304 of a pipeline plan, or PL104 where there is none.

    `bounds` are the first layers of the stages after the first. Without them, a cut that cannot be made is only a warning as
    long as other cuts can.
    """
    prefix = base_prefix(model)
    entries = [(join(prefix, entry.module), entry) for entry in plan.pp] + [(e.module, e) for e in plan.head_pp]
    modules = dict(model.named_modules())
    missing = [_missing(path, modules) for path, _ in entries if path not in modules]
    if missing or not plan.pp:
        found = tuple(missing) or (pl104.no_pipeline_plan(),)
    else:
        found = tuple(_of_the_keys(model, graph, [path for path, _ in entries]))
        found = (
            found or tuple(_not_listed(modules, graph, entries)) or tuple(_of_the_cuts(model, graph, entries, bounds))
        )
        if all(finding.severity is Severity.WARNING for finding in found):
            found += tuple(check_names(modules, entries))
    return tuple(as_written(finding, prefix) for finding in found)


def _runs(modules: Mapping[str, nn.Module], path: str, call: str) -> bool:
    """Whether a call is of the module that a key names, or of a member of the list that it names."""
    return call == path or (call.rpartition(".")[0] == path and isinstance(modules[path], nn.ModuleList))


def _of_the_keys(model: nn.Module, graph: Graph, keys: list[str]) -> list[Finding]:
    """Findings of the keys: every module has to be named once, in the order of execution, and the layers as one list."""
    modules = dict(model.named_modules())
    owners = [key for key in keys if isinstance(modules.get(key.rpartition(".")[0]), nn.ModuleList)]
    if owners:
        return [pp304.names_one_layer(owners[0])]
    stack = layer_stack(model, keys)
    if stack is not None and (twice := same_member(model, stack)) is not None:
        return [pp304.same_layer_twice(stack, *twice)]
    found = [*_twice(keys), *_order(graph, keys), *_dropped(graph, keys, stack or "")]
    return found or ([] if stack else [pp304.no_list_of_layers()])


def _missing(path: str, paths: Iterable[str]) -> Finding:
    name = path.rpartition(".")[2]
    near = sorted(other for other in paths if other.rpartition(".")[2] == name)
    return pp301.module_missing(path, near[0] if near else None)


def _first_run(graph: Graph) -> dict[str, int]:
    """Every module, and the list it is a member of, by when it first ran."""
    found: dict[str, int] = {}
    for position, call in enumerate(graph.calls):
        found.setdefault(call.module, position)
        found.setdefault(call.module.rpartition(".")[0], position)
    return found


def _twice(keys: list[str]) -> list[Finding]:
    for position, key in enumerate(keys):
        for other in keys[:position]:
            if _holds(key, other) or _holds(other, key):
                return [pp304.named_twice(other, key)]
    return []


def _order(graph: Graph, keys: list[str]) -> list[Finding]:
    ran = _first_run(graph)
    known = [key for key in keys if key in ran]
    right = sorted(known, key=lambda key: ran[key])
    for have, should in zip(known, right, strict=True):
        if have != should:
            return [pp302.wrong_order(have, should, keys=known, ran=right)]
    return []


def _dropped(graph: Graph, keys: list[str], stack: str) -> list[Finding]:
    """Findings of modules with parameters that the hidden states run through, next to a module with a key, and that no key
    covers.

    A module that runs both before and after the layers is on every stage, which no key can express; it is left out.
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
    return [pp304.not_covered(child) for child in beside if child in owned and not _on_both_sides(graph, child, stack)]


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


def _not_listed(modules: Mapping[str, nn.Module], graph: Graph, entries: list[tuple[str, PpEntry]]) -> list[Finding]:
    flow = stream(graph)
    found = []
    for path, entry in entries:
        calls = [call for call in graph.calls if _runs(modules, path, call.module)]
        takes = any(number in flow for call in calls for _, number in call.arguments)
        if (takes and not entry.inputs) or not entry.outputs:
            found.append(pp303.empty_list(path, "inputs" if entry.outputs else "outputs"))
    return found


def _of_the_cuts(
    model: nn.Module, graph: Graph, entries: list[tuple[str, PpEntry]], bounds: Sequence[int]
) -> Iterator[Finding]:
    """Findings of values that some cut between the layers has to carry: they cannot be sent, or the plan does not list them."""
    keys = [path for path, _ in entries]
    stack = layer_stack(model, keys)
    assert stack is not None
    at, layers = keys.index(stack), model.get_submodule(stack)
    assert isinstance(layers, nn.ModuleList)
    live = live_across_each(graph, stack, range(1, len(layers)), tuple(keys[:at]))
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
    """Cuts that cannot be made: an error where `bounds` has one, or where no other cut is possible (not `free`); else a
    warning.
    """
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
        layer = layer_number(module, stack)
        module = module if layer is None else f"{stack}.{layer}"
        what, found = f"{module} runs again behind it", "a module of an earlier stage"
    else:
        made = "the weight" if live.made is None else f"what {graph.ops[live.made].target} makes in"
        found = f"{made} {_made_in(graph, live) or 'the model'}"
        what = f"{found} is needed behind it, by {used.target} in {module or 'the model'}"
    place = Place(entry=stack, module=module or None, source=used.source)
    return pp303.cannot_be_cut(stack, number, place, because=what, found=found)


def _unnamed(graph: Graph, stack: str, entry: PpEntry, name: str, live: Live) -> Finding:
    made = graph.ops[live.made] if live.made is not None else None
    where = (made.module if made else graph.values[live.value].name) or "the model"
    place = Place(entry=stack, module=where, source=made.source if made else None)
    return pp303.input_not_listed(stack, name, place, entry.inputs)


def check_chunks(chunks: Sequence[range], depth: int) -> tuple[Finding, ...]:
    """Finding PP304 where the layers of the stages are not each layer once, in order."""
    ran = [layer for chunk in chunks for layer in chunk]
    if ran == list(range(depth)):
        return ()
    layer = next(layer for layer in range(depth) if ran.count(layer) != 1)
    return (pp304.layer_not_once(layer, ran.count(layer), chunks=chunks, depth=depth),)
