"""What a proof covers, and under which assumptions. Data only."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scope:
    """What was looked at for one verdict.

    Attributes:
        modes: the ways of running the model whose programs were related: `evaluation`, `training`, `decoding`, `eager attention`.
        branches: lines (`file:line`) that branch on data, and were followed to both sides.
        layers: layers that ran in the trace, by path; `same` names those that run the same program as one of them.
        same: layers that one of `layers` stands for.
        assumptions: what was taken for granted, each a sentence with its file and line where it has one.
        stages: the modes in which the programs of pipeline stages were compared with the whole program.
        asked: implementations that were asked for instead of the configured ones, such as `attention: sdpa (asked)`.
    """

    modes: tuple[str, ...] = ()
    branches: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    same: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()

    def sentence(self) -> str:
        """The scope in one line."""
        parts = [", ".join(self.modes), *self.asked]
        if self.stages:
            parts.append(f"stages in {', '.join(self.stages)}")
        if self.branches:
            parts.append(f"{_count(len(self.branches), 'branch', 'branches')} on data, both sides")
        if self.same:
            parts.append(f"{_count(len(self.layers), 'layer')} traced, {len(self.same)} run the same program")
        if self.assumptions:
            parts.append(f"{_count(len(self.assumptions), 'assumption')}")
        return "; ".join(filter(None, parts))


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
