"""What one rank holds of a whole tensor."""

import torch
from torch.distributed.tensor import DTensor

from shardproof.planner.ir.placement import Placement, Shard


class PartError(ValueError):
    """A tensor that does not divide into the parts that its placement asks for."""


def part_of(tensor: torch.Tensor, placement: Placement, *, rank: int, degree: int) -> torch.Tensor:
    """The part of `rank`. `PartError` where the blocks are unequal, or nothing would be left."""
    if not isinstance(placement, Shard):
        return tensor
    size = tensor.shape[placement.dim]
    if size < degree or size % placement.blocks:
        raise PartError(f"{list(tensor.shape)} does not divide into {placement} over {degree} ranks")
    blocks = [block.chunk(degree, placement.dim) for block in tensor.chunk(placement.blocks, placement.dim)]
    if any(len(pieces) <= rank for pieces in blocks):
        raise PartError(f"{list(tensor.shape)} at {placement} leaves nothing for rank {rank}")
    return torch.cat([pieces[rank] for pieces in blocks], placement.dim)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor of a sharded one (a collective: every rank must call it); any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a sharded tensor; any other as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
