"""What the mutants came to: one row, its class, and the tables per operator and per type."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.table import Table


@dataclass(frozen=True, slots=True)
class Judged:
    """One mutant's outcome (or a base's, with the operator `base`). `seconds` are those of the proof and of the run."""

    model: str
    base: str
    operator: str
    mutant: str
    proof: str
    run: str
    codes: tuple[str, ...]
    run_codes: tuple[str, ...]
    said: str
    run_said: str
    named: bool
    seconds: tuple[float, float]

    @property
    def outcome(self) -> str:
        """The class it is counted in.

        A key that matches nothing changes nothing in a run, and is wrong all the same: it is not what its author meant.
        """
        if self.run == "not proved":
            return "run undecided"
        match self.proof, self.run:
            case "proved", "refuted":
                return "false proof"
            case "proved", _:
                return "equivalent"
            case "refuted", "confirmed":
                return "refuted" if set(self.codes) & PLAIN else "false accusation"
            case "refuted", _:
                return "refuted"
            case _, "confirmed":
                return "equivalent, not proved"
            case _:
                return "caught by the run only"

    @property
    def well(self) -> bool:
        """Whether the proof said all that there is to say: refuted at a mutated entry, or equivalent and proved."""
        return self.operator == "base" or self.outcome == "equivalent" or (self.outcome == "refuted" and self.named)


PLAIN = frozenset({"PL101", "PL102", "PL104", "PL105", "PL106", "PP302", "PP304"})
"""Findings that hold whatever a run computes: an unknown style, a key that matches nothing, a plan that splits nothing; a module
that a pipeline plan leaves out, names twice, or names out of order (engines then run it on each stage, or on a wrong one).
"""
OUTCOMES = (
    "refuted",
    "caught by the run only",
    "equivalent",
    "equivalent, not proved",
    "false proof",
    "false accusation",
    "run undecided",
)


def _counts(rows: Sequence[Judged]) -> list[str]:
    counts = Counter(row.outcome for row in rows)
    named = sum(row.named for row in rows if row.outcome == "refuted")
    return [*(str(counts[outcome]) for outcome in OUTCOMES), f"{named}/{counts['refuted']}"]


def _groups(rows: Sequence[Judged], key: Callable[[Judged], str]) -> dict[str, list[Judged]]:
    groups: dict[str, list[Judged]] = {}
    for row in sorted(rows, key=key):
        groups.setdefault(key(row), []).append(row)
    return groups


def _mutants(rows: Sequence[Judged]) -> list[Judged]:
    return [row for row in rows if row.operator != "base"]


def table(rows: Sequence[Judged]) -> Table:
    """Per operator, for the terminal."""
    found = _mutants(rows)
    made = Table("operator", *OUTCOMES, "entry named", title=f"{len(found)} mutants")
    for operator, mine in _groups(found, lambda row: row.operator).items():
        made.add_row(operator, *_counts(mine))
    made.add_row("all", *_counts(found))
    return made


TEXT = (
    "# Mutants",
    "",
    "Right plans with one mistake each, judged by the proof and by a run of the same plan on the twin, ranks as threads of",
    "one process. Written by `python -m benchmarks mutants --page docs/mutants.md`; the operators are those of",
    "`tests/mutants/operators.py`.",
    "",
)


def page(rows: Sequence[Judged], text: Sequence[str] = TEXT) -> str:
    """The page of the documentation, under its first lines, from the rows alone."""
    found, bases = _mutants(rows), [row for row in rows if row.operator == "base"]
    wrong = [row for row in found if row.run == "refuted" or (row.outcome == "refuted")]
    refuted = [row for row in wrong if row.outcome == "refuted"]
    counts = Counter(row.outcome for row in found)
    lines = [
        *text,
        f"- Mutants: {len(found)}, of {len([b for b in bases if b.run == 'confirmed'])} right plans of "
        f"{len({row.model for row in found})} models.",
        f"- Wrong mutants refuted by the proof: {_share(len(refuted), len(wrong))}.",
        f"- Of these, naming a mutated entry: {_share(sum(row.named for row in refuted), len(refuted))}.",
        f"- False proofs: {counts['false proof']}. False accusations: {counts['false accusation']}.",
        "",
        *_lines("operator", _groups(found, lambda row: row.operator), found),
        "",
        *_lines("model", _groups(found, lambda row: row.model), found),
        "",
        *_left_out(bases),
    ]
    return "\n".join(lines) + "\n"


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({100 * part / whole:.1f} %)" if whole else "none"


def _lines(what: str, groups: dict[str, list[Judged]], rows: Sequence[Judged]) -> list[str]:
    heads = (what, *OUTCOMES, "entry named")
    body = [f"| {' | '.join((name, *_counts(mine)))} |" for name, mine in {**groups, "all": list(rows)}.items()]
    return [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads), *body]


def _left_out(bases: Sequence[Judged]) -> list[str]:
    wrong = [row for row in bases if row.run != "confirmed"]
    if not wrong:
        return []
    lines = [f"| {row.model} | {row.base} | {row.proof} | {row.run} | {row.run_said} |" for row in wrong]
    return [
        "Plans that the run does not confirm, and that are no bases therefore:",
        "",
        "| model | plan | proof | run | what the run says |",
        "| --- | --- | --- | --- | --- |",
        *lines,
    ]
