"""Find the first module, in the order in which modules finish, whose output is not a part of the single-device output."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from shardproof.planner.ir.placement import Placement, R, Shard
from shardproof.planner.ir.plan import generic, key_for
from shardproof.verify.run.collectives.autograd import AxisRank
from shardproof.verify.run.compare.module_activations import ModuleActivations
from shardproof.verify.run.compare.tensors import LIMIT, relative_error

PACKED = (2, 3)
"""Block counts that packed projections have: gate and up; query, key and value."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first module that diverged, the plan entry that applies to it (None where there is none), and what its output was."""

    module: str
    entry: str | None
    found: str
    needed: str


def placement(got: torch.Tensor | None, want: torch.Tensor | None, at: AxisRank) -> Placement | None:
    """The placement of this rank's tensor relative to the right one: R, or one shard; None where it is neither."""
    if got is None or want is None:
        return R if got is want else None
    if relative_error(got, want) <= LIMIT:
        return R
    for dim in range(min(want.ndim, got.ndim)):
        for blocks in (1, *PACKED):
            if _is_shard(got, want, Shard(dim, blocks=blocks), at):
                return Shard(dim, blocks=blocks)
    return None


def _is_shard(got: torch.Tensor, want: torch.Tensor, shard: Shard, at: AxisRank) -> bool:
    if want.shape[shard.dim] % shard.blocks or want.shape[shard.dim] < at.degree * shard.blocks:
        return False
    parts = [block.chunk(at.degree, shard.dim) for block in want.chunk(shard.blocks, shard.dim)]
    if any(len(part) <= at.rank for part in parts):
        return False
    mine = torch.cat([part[at.rank] for part in parts], shard.dim)
    return relative_error(got, mine) <= LIMIT


def first_divergence(
    got: Sequence[ModuleActivations], want: Sequence[ModuleActivations], styles: dict[str, str], at: AxisRank
) -> Divergence | None:
    """The first module whose output is no part of the single-device one; None where every one is.

    `styles` are the plan's keys as the head model sees them. A module with a right input and a wrong output is at fault itself. A
    module with a wrong input points at its siblings: of these, one without an entry is named where others are sharded.
    """
    seen: dict[str, Placement | None] = {}
    for mine, right in zip(got, want, strict=False):
        if mine.module != right.module:
            return Divergence(mine.module, entry_of(mine.module, styles), f"ran {mine.module}", f"run {right.module}")
        given = placement(mine.given, right.given, at)
        if given is None:
            if placement(mine.taken, right.taken, at) is None and (inside := _between(mine.module, seen, styles)):
                return inside
            return _at(mine, right, styles)
        seen[mine.module] = given
    return None


def _between(module: str, seen: dict[str, Placement | None], styles: dict[str, str]) -> Divergence | None:
    """The input of `module` is wrong though the outputs of its siblings are right: the parent combined parts that do not fit."""
    parent = module.rpartition(".")[0]
    siblings = {name: held for name, held in seen.items() if name.rpartition(".")[0] == parent}
    if not parent or not siblings:
        return None
    cut = [name for name, held in siblings.items() if isinstance(held, Shard)]
    whole = [name for name, held in siblings.items() if held == R and entry_of(name, styles) is None]
    suspect = entry_key(whole[0]) if cut and whole else entry_of(module, styles)
    held = ", ".join(f"{name.rpartition('.')[2]} {held}" for name, held in siblings.items())
    return Divergence(parent, suspect, f"parts that do not fit together: {held}", "the same heads or features of each")


def _at(mine: ModuleActivations, right: ModuleActivations, styles: dict[str, str]) -> Divergence:
    if mine.given is None or right.given is None:
        return Divergence(mine.module, entry_of(mine.module, styles), "no tensor", "a tensor")
    error = relative_error(mine.given, right.given)
    found = f"{tuple(mine.given.shape)}, relative error {error:.1e}"
    return Divergence(
        mine.module, entry_of(mine.module, styles), found, f"{tuple(right.given.shape)}, or one shard of it"
    )


def entry_key(name: str) -> str:
    """A module or parameter name as a plan would key it."""
    return generic(name)


def entry_of(name: str, styles: dict[str, str]) -> str | None:
    """The key that applies to a module or a parameter: its own, or (for a parameter) its module's."""
    return key_for(name, styles) or key_for(name.rpartition(".")[0], styles)
