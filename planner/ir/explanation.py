"""Why a plan is as it is: groups of dims that must be sharded together, what is not sharded, and code changes that would
shard it.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Member:
    """One parameter pattern in a group: its dim `dim` has `size` elements, in `blocks` packed blocks."""

    parameter: str
    dim: int
    size: int
    blocks: int = 1

    def __str__(self) -> str:
        packed = f", {self.blocks} blocks" if self.blocks > 1 else ""
        return f"{self.parameter} dim {self.dim} ({self.size}{packed})"


@dataclass(frozen=True, slots=True)
class Tie:
    """An op with a group's dim: either two or more of its tensors share the dim, or it needs the whole dim (`why` says so)."""

    op: str
    module: str
    source: str
    why: str = ""

    def __str__(self) -> str:
        where = f"{self.op} in {self.module or 'the model'}" + (f" ({self.source})" if self.source else "")
        return f"{where}: {self.why}" if self.why else where


@dataclass(frozen=True, slots=True)
class Group:
    """Dims that must be sharded together, with `size` independent parts; `reason` says why a group is not `sharded`."""

    size: int
    members: tuple[Member, ...]
    ties: tuple[Tie, ...]
    forbids: tuple[Tie, ...]
    sharded: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Patch:
    """A small change of the modeling code as a unified diff, and the module patterns that it allows to shard."""

    title: str
    unlocks: tuple[str, ...]
    diff: str
    tried: bool
    """Whether the change was tried: with it, the rank's program relates to the single-device program."""


@dataclass(frozen=True, slots=True)
class LeftWhole:
    """Parameters of one module pattern that are replicated on every rank; `share` of all parameter bytes, 0 to 1."""

    pattern: str
    elements: int
    bytes: int
    reason: str
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class Explanation:
    """All groups, largest first; the parameters that are not sharded, largest first; code changes that would shard more."""

    groups: tuple[Group, ...] = ()
    left: tuple[LeftWhole, ...] = ()
    patches: tuple[Patch, ...] = ()
