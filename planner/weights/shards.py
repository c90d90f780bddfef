"""A rank's part of a whole tensor, and back."""

import torch
from torch.distributed.tensor import DTensor

from shardproof.planner.ir.placement import Placement, Shard


class PartError(ValueError):
    """A tensor that cannot be divided as its placement says."""


def part_of(tensor: torch.Tensor, placement: Placement, *, rank: int, degree: int) -> torch.Tensor:
    """The part of a tensor that `rank` of `degree` ranks holds.

    Raises:
        PartError: the dim does not divide into equal blocks, or the rank would hold nothing.
    """
    if not isinstance(placement, Shard):
        return tensor
    size = tensor.shape[placement.dim]
    sizes = placement.block_sizes(size)
    if size < degree or sizes is None or (placement.parts and any(each % degree for each in sizes)):
        raise PartError(f"{list(tensor.shape)} does not divide into {placement} over {degree} ranks")
    blocks = [block.chunk(degree, placement.dim) for block in tensor.split(sizes, placement.dim)]
    if any(len(pieces) <= rank for pieces in blocks):
        raise PartError(f"{list(tensor.shape)} at {placement} leaves nothing for rank {rank}")
    return torch.cat([pieces[rank] for pieces in blocks], placement.dim)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor of a distributed tensor; a plain tensor unchanged. A collective: every rank must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a distributed tensor; a plain tensor unchanged."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
