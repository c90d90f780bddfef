"""Why a plan is as it is: the groups of dims that must be split together, what stays whole, and what would change that."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Member:
    """One parameter pattern of a group: dim `dim`, of `size` elements, in `blocks` packed blocks of the group's dim."""

    parameter: str
    dim: int
    size: int
    blocks: int = 1

    def __str__(self) -> str:
        packed = f", {self.blocks} blocks" if self.blocks > 1 else ""
        return f"{self.parameter} dim {self.dim} ({self.size}{packed})"


@dataclass(frozen=True, slots=True)
class Tie:
    """An op in which a group's dim appears: where two or more tensors share it, or (`why`) where it must be whole."""

    op: str
    module: str
    source: str
    why: str = ""

    def __str__(self) -> str:
        where = f"{self.op} in {self.module or 'the model'}" + (f" ({self.source})" if self.source else "")
        return f"{where}: {self.why}" if self.why else where


@dataclass(frozen=True, slots=True)
class Group:
    """Dims that are one: `size` independent parts. `sharded` by the plan, or whole for the `reason`."""

    size: int
    members: tuple[Member, ...]
    ties: tuple[Tie, ...]
    forbids: tuple[Tie, ...]
    sharded: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Patch:
    """A small change of the modeling code, as a unified diff, and the module patterns that it would let the plan shard."""

    title: str
    unlocks: tuple[str, ...]
    diff: str
    tried: bool
    """Whether the proposal was related to the single-device program with the change in effect."""


@dataclass(frozen=True, slots=True)
class Left:
    """Parameters of one module pattern that stay whole on every rank."""

    pattern: str
    elements: int
    bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """All groups, largest first; all that is left whole, largest first; changes of the code that would shard more."""

    groups: tuple[Group, ...] = ()
    left: tuple[Left, ...] = ()
    patches: tuple[Patch, ...] = ()
