"""What is written down for one model type: one line of JSON; of a type's lines the last one counts."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Judged:
    """One plan of one type: the share of parameter bytes it shards, and per degree its verdict and first finding."""

    fraction: float
    plan: dict[str, object]
    proof: dict[str, str] = field(default_factory=dict)
    run: dict[str, str] = field(default_factory=dict)
    findings: dict[str, str] = field(default_factory=dict)
    """By level and degree (`proof 2`): code and message."""
    errors: dict[str, float] = field(default_factory=dict)
    """By degree: the largest relative error that the run measured. What could not be run to the end has none."""

    def right(self, level: str) -> bool:
        """Whether every degree that was asked came out right, and one was asked."""
        verdicts = (self.proof if level == "proof" else self.run).values()
        return bool(verdicts) and set(verdicts) <= {"proved", "confirmed"}


@dataclass(frozen=True, slots=True)
class Row:
    """One type. `stage` is how far it came: `load`, `build`, `suggest`, `prove`, `twin`, `run`, `crash` or `done`; `reason` says
    why no further. `seconds` are of processor time, without imports; those of a run are of the clock.
    """

    name: str
    stage: str
    reason: str = ""
    ops: int = 0
    degrees: tuple[int, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    mine: Judged | None = None
    upstream: Judged | None = None
    inputs: tuple[str, ...] = ()
    """The arguments of the forward that the trace gave."""
    notes: tuple[str, ...] = ()
    """What the trace left out or took for granted."""

    def line(self) -> str:
        """As one line of JSON."""
        return json.dumps(asdict(self))


def row_of(data: dict[str, object]) -> Row:
    """A row from its JSON object."""
    known = {key.name for key in fields(Row)}
    given = {key: value for key, value in data.items() if key in known}
    for key in ("mine", "upstream"):
        inner = given.get(key)
        given[key] = Judged(**inner) if isinstance(inner, dict) else None
    for key in ("degrees", "inputs", "notes"):
        listed = given.get(key)
        given[key] = tuple(listed) if isinstance(listed, list) else ()
    return Row(**given)  # type: ignore[arg-type]  # the fields of a file that this module wrote


def read_rows(path: Path) -> dict[str, Row]:
    """The rows of a file by type; none where there is no file."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = (row_of(json.loads(line)) for line in lines if line)
    return {row.name: row for row in rows}


def disagreements(rows: Iterable[Row]) -> list[str]:
    """Plans of which proof and run say the opposite: each is our bug."""
    found = []
    for row in rows:
        for whose, judged in (("suggested", row.mine), ("upstream's", row.upstream)):
            for degree, ran in judged.run.items() if judged else ():
                proved = judged.proof.get(degree) if judged else None
                if (proved, ran) in (("proved", "refuted"), ("refuted", "confirmed")):
                    why = (
                        judged.findings.get(f"{'run' if ran == 'refuted' else 'proof'} {degree}", "") if judged else ""
                    )
                    found.append(f"{row.name}: {whose} plan at degree {degree} is {proved} and the run {ran}: {why}")
    return found
