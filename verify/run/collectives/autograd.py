"""Collectives on plain tensors, each with the backward that belongs to it, and the parts of a tensor by placement."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from shardproof.planner.ir.placement import Placement, Shard
from shardproof.planner.weights.shards import part_of


@dataclass(frozen=True, slots=True)
class AxisRank:
    """This process's rank on one mesh axis, and the number of ranks (`degree`) of the axis."""

    rank: int
    degree: int


def part(tensor: torch.Tensor, placement: Placement, at: AxisRank) -> torch.Tensor:
    """This rank's part of a whole tensor. `PartError` where the blocks are unequal, or the part would be empty."""
    return part_of(tensor, placement, rank=at.rank, degree=at.degree)


def gathered(mine: torch.Tensor, placement: Placement, at: AxisRank, *, size: int) -> torch.Tensor:
    """All-gather the whole tensor from all ranks; `size` is the whole size of the sharded dim. Not differentiable."""
    if not isinstance(placement, Shard):
        return mine
    dim = placement.dim
    if placement.blocks > 1:
        sizes = placement.block_sizes(size)
        assert sizes is not None, "the part was made by these blocks"
        mine_of = [each // at.degree for each in sizes] if placement.parts else mine.shape[dim] // placement.blocks
        pieces = [
            gathered(piece, Shard(dim), at, size=each)
            for piece, each in zip(mine.split(mine_of, dim), sizes, strict=True)
        ]
        return torch.cat(pieces, dim)
    most = -(-size // at.degree)
    padding = mine.new_zeros([*mine.shape[:dim], most - mine.shape[dim], *mine.shape[dim + 1 :]])
    padded = torch.cat([mine, padding], dim).contiguous()
    parts = [torch.empty_like(padded) for _ in range(at.degree)]
    dist.all_gather(parts, padded)
    return torch.cat(parts, dim).narrow(dim, 0, size)


def total(tensor: torch.Tensor) -> torch.Tensor:
    """All-reduce (sum) into a new tensor. Not differentiable."""
    made = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(made)
    return made


def reduce(partial: torch.Tensor) -> torch.Tensor:
    """All-reduce `P(sum)` to `R`. The backward is the identity: the gradient is whole already."""
    given: torch.Tensor = _Reduce.apply(partial)  # type: ignore[no-untyped-call]  # torch's own is untyped
    return given


def enter(whole: torch.Tensor) -> torch.Tensor:
    """The identity on `R` before sharded work; the backward all-reduces the gradients."""
    given: torch.Tensor = _Enter.apply(whole)  # type: ignore[no-untyped-call]  # torch's own is untyped
    return given


def gather(mine: torch.Tensor, at: AxisRank, *, size: int) -> torch.Tensor:
    """All-gather the last dim, whose whole size is `size`; in the backward every rank keeps its part of the gradient."""
    given: torch.Tensor = _Gather.apply(mine, at, size)  # type: ignore[no-untyped-call]  # torch's own is untyped
    return given


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, partial: torch.Tensor) -> torch.Tensor:
        return total(partial)

    @staticmethod
    def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, whole: torch.Tensor) -> torch.Tensor:
        return whole.view_as(whole)

    @staticmethod
    def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:
        return total(gradient)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, mine: torch.Tensor, at: AxisRank, size: int) -> torch.Tensor:
        context.at = at
        return gathered(mine, Shard(mine.ndim - 1), at, size=size)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return part(gradient, Shard(gradient.ndim - 1), context.at), None, None
