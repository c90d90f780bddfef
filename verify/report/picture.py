"""Compute what the HTML page draws of a plan: every module with its placements and collectives, and the bytes of each stage."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from math import prod

from torch import nn

from shardproof.planner.ir.graph import Graph
from shardproof.planner.ir.placement import R, local_shape
from shardproof.planner.ir.plan import Plan, generic, join
from shardproof.planner.propagation.assign import Assigned, assign
from shardproof.planner.propagation.collectives import collectives
from shardproof.planner.tracing.programs import local_program, subject_of
from shardproof.planner.tracing.rank_program import HookError, IndivisibleError
from shardproof.planner.tracing.recorded_run import TraceError
from shardproof.verify.report.drawing import Box, DrawnStage, Picture

Cut = Callable[[Sequence[int], int, int], Sequence[int]]
"""Bytes of each layer, of what comes before the layers and of what comes after them -> the first layers of stages 1, 2, ..."""


def picture(model: nn.Module, plan: Plan, *, tp: int, pp: int, cut: Cut | None = None) -> Picture:
    """The plan drawn on a model that is on the meta device; the collectives are left out where the program of a rank cannot
    be traced.

    `cut` says where the stages begin; without it every stage has equally many layers.
    """
    subject = subject_of(model)
    graph, prefix = subject.graph, subject.prefix
    assigned = assign(graph, plan.styles(prefix), base_prefix=prefix)
    issued = _issued(model, assigned, tp)
    sizes = {module.path: _bytes(graph, assigned, module.path, tp) for module in graph.modules}
    boxes = tuple(
        Box(
            module.path,
            module.kind,
            assigned.modules[module.path][0].name if module.path in assigned.modules else "",
            _placements(graph, assigned, module.path),
            *sizes[module.path],
            tuple(issued.get(module.path, ())),
            module.repeats,
        )
        for module in graph.modules
    )
    local = {path: mine for path, (_, mine) in sizes.items()}
    return Picture(boxes, _stages(graph, plan, prefix, local, pp, cut or partial(_evenly, pp)), tp, pp)


def stages_of(model: nn.Module, plan: Plan, *, tp: int, pp: int, cut: Cut | None = None) -> tuple[DrawnStage, ...]:
    """The stages of a plan, with the bytes of parameters that one rank of each holds; `cut` as of `picture`."""
    subject = subject_of(model)
    assigned = assign(subject.graph, plan.styles(subject.prefix), base_prefix=subject.prefix)
    local = {module.path: _bytes(subject.graph, assigned, module.path, tp)[1] for module in subject.graph.modules}
    return _stages(subject.graph, plan, subject.prefix, local, pp, cut or partial(_evenly, pp))


def _evenly(pp: int, layers: Sequence[int], before: int, after: int) -> Sequence[int]:  # noqa: ARG001  # a `Cut`
    return [number * len(layers) // pp for number in range(1, pp)]


def _issued(model: nn.Module, assigned: Assigned, tp: int) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {}
    try:
        local = local_program(model, assigned, tp)
    except (TraceError, IndivisibleError, HookError):
        return found
    for one in collectives(local):
        found.setdefault(one.module, []).append(
            f"{one.kind} of {one.elements:,}{' (backward)' if one.backward else ''}"
        )
    return found


def _bytes(graph: Graph, assigned: Assigned, path: str, tp: int) -> tuple[int, int]:
    """Bytes of a module's own parameters, in all and on one rank; a parameter whose dim does not divide counts in full."""
    whole = local = 0
    for name, number in graph.module_of[path].parameters:
        value = graph.values[number]
        size = _width(value.dtype)
        whole += prod(value.shape) * size
        placement = assigned.parameters.get(join(path, name), (R, ""))[0]
        try:
            shape = local_shape(value.shape, placement, tp)
        except ValueError:
            shape = value.shape
        local += prod(shape) * size
    return whole, local


def _width(dtype: str) -> int:
    """Bytes of one element, from the dtype's name."""
    digits = "".join(letter for letter in dtype.partition("_")[0] if letter.isdigit())
    return max(int(digits or 8) // 8, 1)


def _placements(graph: Graph, assigned: Assigned, path: str) -> tuple[tuple[str, str], ...]:
    names = [name for name, _ in graph.module_of[path].parameters]
    return tuple((name, str(assigned.parameters.get(join(path, name), (R, ""))[0])) for name in names)


def _stages(
    graph: Graph, plan: Plan, prefix: str, local: Mapping[str, int], pp: int, cut: Cut
) -> tuple[DrawnStage, ...]:
    """The stages: the layers as `cut` says, with the modules that the plan lists before them on the first and after them on
    the last.
    """
    paths = [join(prefix, entry.module) for entry in plan.pp] + [entry.module for entry in plan.head_pp]
    members = {path: [p for p in graph.module_of if p.rpartition(".")[0] == path] for path in paths}
    stack = next((path for path in paths if graph.module_of.get(path) and _is_list(graph, path)), None)
    if stack is None or pp == 1:
        return (DrawnStage("all modules", (), sum(local.values())),)

    def below(path: str) -> int:
        return sum(size for name, size in local.items() if name == path or name.startswith(f"{path}."))

    layers = members[stack]
    at = paths.index(stack)
    ends_of = (sum(map(below, paths[:at])), sum(map(below, paths[at + 1 :])))
    bounds = [0, *cut([below(layer) for layer in layers], *ends_of), len(layers)]
    stages = []
    for number, (start, end) in enumerate(pairwise(bounds)):
        ends = (paths[:at] if number == 0 else []) + (paths[at + 1 :] if number == pp - 1 else [])
        held = [*layers[start:end], *ends]
        name = f"{generic(stack)} {start} to {end - 1}" if end > start else "no layer"
        stages.append(DrawnStage(name, tuple(ends), sum(map(below, held))))
    return tuple(stages)


def _is_list(graph: Graph, path: str) -> bool:
    return "ModuleList" in graph.module_of[path].bases
