"""What a trainer does, asked of every type's suggested plan on real ranks: how many types answer each question, and how."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.types import causal_types
from benchmarks.warm import cases
from shardproof.launch.ranks.request import Start
from shardproof.launch.ranks.runner import CaseResult
from shardproof.launch.ranks.torchrun import TorchrunRanks
from shardproof.launch.ranks.train import training_result
from shardproof.planner.ir.findings import Severity
from shardproof.verify.run.training.answers import Answered
from shardproof.verify.run.training.questions import QUESTIONS
from shardproof.verify.stages.case import Case

TOGETHER = 8
"""Types that share one start of the ranks."""
LIMIT = 900.0
"""Seconds for one type: other work may share the machine."""


@dataclass(frozen=True, slots=True)
class Trained:
    """One type: the outcome of each question, its answer in words, and the errors; `finding` says why there are none.

    `seconds` are of the clock, `cpu` of the processor of the slowest rank.
    """

    model: str
    outcomes: dict[str, str] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)
    errors: tuple[str, ...] = ()
    seconds: float = 0.0
    cpu: float = 0.0
    finding: str = ""


def main(names: tuple[str, ...], out: Path, *, tp: int) -> int:
    """Ask, print the table, write JSON after every type; types that `out` holds already are not asked again."""
    known = [Trained(**row) for row in json.loads(out.read_text())] if out.exists() else []
    done = {row.model for row in known}
    wanted = [name for name in names or causal_types() if name not in done]
    groups = [wanted[start : start + TOGETHER] for start in range(0, len(wanted), TOGETHER)]
    for group in track(groups, description="training", console=Console(stderr=True)):
        for row in asked(group, tp):
            known.append(row)
            out.write_text(json.dumps([asdict(row) for row in known], indent=1))
    Console().print(table(known, tp))
    return int(any(row.errors for row in known))


def asked(names: Sequence[str], tp: int) -> Iterator[Trained]:
    """The answers of a few types, from ranks that stay warm."""
    made = list(cases(names, tp))
    given = tuple(replace(case, training=True) for _, case in made if isinstance(case, Case))
    with TorchrunRanks(Start(tp, LIMIT)) as ranks:
        results = ranks.run(given)
        for name, case in made:
            yield _row(name, case, next(results)) if isinstance(case, Case) else Trained(name, finding=case)


def _row(name: str, case: Case, result: CaseResult) -> Trained:
    findings, words = training_result(replace(case, training=True), result, LIMIT)
    errors = tuple(f"{one.code}: {one.message}" for one in findings if one.severity is Severity.ERROR)
    answers = result.outcomes[0].training if 0 in result.outcomes else ()
    return Trained(
        name,
        {answer.question: answer.answered.value for answer in answers},
        dict(words),
        errors,
        round(result.seconds, 1),
        round(max((outcome.cpu_seconds for outcome in result.outcomes.values()), default=0.0), 1),
        "" if answers else next((one.message for one in findings), "no answer"),
    )


def table(rows: Sequence[Trained], tp: int) -> Table:
    """How many types answer each question, and how."""
    columns = tuple(answered.value for answered in Answered)
    made = Table("question", *columns, title=f"{len(rows)} types at tp {tp}")
    for question in QUESTIONS:
        counts = Counter(row.outcomes.get(question.name, "no run") for row in rows)
        made.add_row(question.name, *(str(counts[column]) for column in columns))
    made.caption = f"{sum(not row.outcomes for row in rows)} types were not run"
    return made
