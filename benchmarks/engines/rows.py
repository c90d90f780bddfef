"""What is written down of one family: for each plan and layout, the engine's answer and the proof's verdict."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from shardproof.launch.clients.vllm_engine import LIMIT

LAYOUTS = ((2, 1), (1, 2), (2, 2))
"""Tensor-parallel ranks and pipeline stages."""


@dataclass(slots=True)
class Answer:
    """One plan at one layout: the proof's verdict in the dialect, and the engine's largest difference or its error.

    `held` is the share of the parameter bytes that the first rank holds, of those that one rank alone holds.
    """

    verdict: str = ""
    codes: list[str] = field(default_factory=list)
    difference: float | None = None
    held: float | None = None
    error: str = ""

    @property
    def ran(self) -> bool:
        return self.difference is not None or bool(self.error)

    @property
    def right(self) -> bool:
        return self.difference is not None and self.difference <= LIMIT


@dataclass(slots=True)
class Row:
    """A family: `answers` by plan (`ours`, `shipped`) and layout; `alone` is the engine on one rank."""

    name: str
    reason: str = ""
    """Why nothing was served."""
    unplanned: str = ""
    """Why there is no plan of ours, and so nothing served on ranks with it."""
    carried: bool = False
    """Whether Transformers ships a tensor-parallel plan of its layers."""
    checked: list[str] = field(default_factory=list)
    """What `plan check --backend vllm` finds of the model itself, as code and message."""
    alone: Answer = field(default_factory=Answer)
    answers: dict[str, dict[str, Answer]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    """Of vLLM, and of the Transformers beside it."""

    def right(self, plan: str) -> bool:
        given = self.answers.get(plan, {})
        return self.alone.right and len(given) == len(LAYOUTS) and all(answer.right for answer in given.values())

    def disagreements(self) -> list[str]:
        """Where the proof and the engine say the opposite of each other, of an engine that is right on one rank."""
        return [
            f"{self.name}, {plan}, {layout}: {answer.verdict}, and the engine is {'right' if answer.right else 'wrong'}"
            for plan, given in self.answers.items()
            for layout, answer in given.items()
            if self.alone.right and answer.ran and answer.verdict == ("refuted" if answer.right else "proved")
        ]


def key(tp: int, pp: int) -> str:
    """`tp 2`, `pp 2`, `tp 2 x pp 2`."""
    return " x ".join(f"{axis} {size}" for axis, size in (("tp", tp), ("pp", pp)) if size > 1)


def read_rows(path: Path) -> dict[str, Row]:
    """Rows by family; a later line of a family replaces an earlier one."""
    found: dict[str, Row] = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        fields = json.loads(line)
        fields["alone"] = Answer(**fields["alone"])
        fields["answers"] = {
            plan: {layout: Answer(**answer) for layout, answer in given.items()}
            for plan, given in fields["answers"].items()
        }
        found[fields["name"]] = Row(**fields)
    return found


def write_row(path: Path, row: Row) -> None:
    """One line more."""
    with path.open("a") as out:
        out.write(json.dumps(asdict(row)) + "\n")
