"""Run one op on whole tensors and on the parts that each rank would hold, and ask whether a placement of the result is true."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

import torch
from torch import Tensor, nn

from shardproof.planner.ir.graph import Graph
from shardproof.planner.ir.placement import P, Partial, Placement, R, Replicate, Shard
from shardproof.planner.propagation.forward.op_placements import follow
from shardproof.planner.propagation.forward.relation import Problem
from shardproof.planner.propagation.rules.registry import rule_of
from shardproof.planner.propagation.semantics import Call
from shardproof.planner.tracing.recorded_run import Tracing

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """One op: a function of whole float64 tensors of these shapes."""

    name: str
    function: Function
    shapes: tuple[tuple[int, ...], ...]


class _Wrapped(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.function(*(value for value in inputs.values() if isinstance(value, Tensor)))


def graph_of(function: Function, shapes: tuple[tuple[int, ...], ...]) -> Graph:
    """The traced program of a function of tensors of these shapes."""
    inputs = {f"x{i}": torch.empty(shape, dtype=torch.float64, device="meta") for i, shape in enumerate(shapes)}
    return Tracing(_Wrapped(function)).run(inputs)


def placements_of(shape: tuple[int, ...], degree: int) -> Iterator[Placement]:
    """Every placement that a tensor of this shape can have; the last part of a shard may be shorter."""
    yield R
    yield P
    for dim, size in enumerate(shape):
        if _fills(size, degree):
            yield Shard(dim)
        if size % 2 == 0 and _fills(size // 2, degree):
            yield Shard(dim, blocks=2)


def _fills(size: int, degree: int) -> bool:
    """Whether `chunk` leaves something for every rank."""
    return -(-size // degree) * (degree - 1) < size


def scatter(whole: Tensor, placement: Placement, degree: int, seed: int) -> list[Tensor]:
    """What each rank holds."""
    match placement:
        case Replicate():
            return [whole] * degree
        case Shard(dim):
            blocks = whole.split(placement.block_sizes(whole.shape[dim]), dim)
            cut = [block.chunk(degree, dim) for block in blocks]
            return [torch.cat([block[rank] for block in cut], dim) for rank in range(degree)]
        case Partial():
            generator = torch.Generator().manual_seed(seed)
            parts = [torch.randint(-3, 4, whole.shape, generator=generator).double() for _ in range(degree - 1)]
            return [*parts, whole - sum(parts)]
        case _:
            raise ValueError(f"{placement} cannot be scattered.")


def holds(parts: list[Tensor], whole: Tensor, placement: Placement) -> bool:
    """Whether the ranks' results are the whole result placed so."""
    degree = len(parts)
    if isinstance(placement, Partial):
        return all(p.shape == whole.shape for p in parts) and torch.allclose(
            torch.stack(parts).sum(0), whole, equal_nan=True
        )
    if isinstance(placement, Shard):
        sizes = placement.block_sizes(whole.shape[placement.dim])
        if sizes is None or not all(_fills(size, degree) for size in sizes):
            return False
    wanted = scatter(whole, placement, degree, 0)
    return all(p.shape == w.shape and torch.allclose(p, w, equal_nan=True) for p, w in zip(parts, wanted, strict=True))


@dataclass(frozen=True)
class Row:
    """One combination of input placements: what the table claims (None: nothing), whether it holds, and what else is true."""

    inputs: tuple[Placement, ...]
    claimed: Placement | None
    holds: bool
    true: tuple[Placement, ...]


@cache
def rows(case: Case, degree: int) -> tuple[Row, ...]:
    """Every combination of input placements of a one-op case whose per-rank program runs."""
    return tuple(_rows(case, degree))


def rules_of(case: Case) -> frozenset[str]:
    """The rules that a case goes through."""
    targets = {op.target for op in graph_of(case.function, case.shapes).ops}
    return frozenset(name for target in targets if (name := rule_of(target)) is not None)


def _rows(case: Case, degree: int) -> Iterator[Row]:
    generator = torch.Generator().manual_seed(7)
    wholes = [torch.randint(-4, 5, shape, generator=generator).double() for shape in case.shapes]
    result = case.function(*(whole.clone() for whole in wholes)).double()
    graph = graph_of(case.function, case.shapes)
    for combination in product(*(list(placements_of(shape, degree)) for shape in case.shapes)):
        scattered = [scatter(w, p, degree, i) for i, (w, p) in enumerate(zip(wholes, combination, strict=True))]
        try:
            parts = [case.function(*(s[rank].clone() for s in scattered)).double() for rank in range(degree)]
            local = graph_of(case.function, tuple(tuple(s[0].shape) for s in scattered))
        except (RuntimeError, ValueError, IndexError):
            continue  # the per-rank program fails by itself: nothing to claim
        true = tuple(p for p in placements_of(tuple(result.shape), degree) if holds(parts, result, p))
        claimed = _claimed(graph, local, combination, degree)
        yield Row(combination, claimed, claimed is not None and holds(parts, result, claimed), true)


def _claimed(graph: Graph, local: Graph, inputs: tuple[Placement, ...], degree: int) -> Placement | None:
    placed = dict(zip((number for _, number in graph.inputs), inputs, strict=True))
    if len(local.ops) != len(graph.ops):
        return None
    for whole_op, local_op in zip(graph.ops, local.ops, strict=True):
        given = tuple(placed.get(number, R) for number in whole_op.inputs)
        followed = follow(Call(graph, whole_op), Call(local, local_op), given, degree)
        if isinstance(followed, Problem):
            return None
        placed |= dict(zip(whole_op.outputs, followed, strict=True))
    return placed[graph.outputs[0][1]]
