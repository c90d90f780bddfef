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
from shardproof.launch.ranks.torchrun import TorchrunRanks
from shardproof.launch.ranks.train import training_result
from shardproof.planner.ir.findings import Severity
from shardproof.verify.run.training.questions import QUESTIONS
from shardproof.verify.stages.case import Case

TOGETHER = 8
"""Types that share one start of the ranks."""
LIMIT = 300.0


@dataclass(frozen=True, slots=True)
class Trained:
    """One type: the outcome of each question, its answer in words, and the errors; `finding` says why there are none."""

    model: str
    outcomes: dict[str, str] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)
    errors: tuple[str, ...] = ()
    seconds: float = 0.0
    finding: str = ""


def main(names: tuple[str, ...], out: Path, *, tp: int) -> int:
    """Ask, print the table, write JSON after every group; types that `out` holds already are not asked again."""
    known = [Trained(**row) for row in json.loads(out.read_text())] if out.exists() else []
    done = {row.model for row in known}
    wanted = [name for name in names or causal_types() if name not in done]
    groups = [wanted[start : start + TOGETHER] for start in range(0, len(wanted), TOGETHER)]
    for group in track(groups, description="training", console=Console(stderr=True)):
        known += asked(group, tp)
        out.write_text(json.dumps([asdict(row) for row in known], indent=1))
    Console().print(table(known, tp))
    return int(any(row.errors for row in known))


def asked(names: Sequence[str], tp: int) -> Iterator[Trained]:
    """The answers of a few types, from ranks that stay warm."""
    made = list(cases(names, tp))
    given = tuple(replace(case, training=True) for _, case in made if isinstance(case, Case))
    with TorchrunRanks(Start(tp, LIMIT)) as ranks:
        results = iter(list(ranks.run(given)))
    for name, case in made:
        if not isinstance(case, Case):
            yield Trained(name, finding=case)
            continue
        result = next(results)
        findings, words = training_result(replace(case, training=True), result, LIMIT)
        errors = tuple(f"{one.code}: {one.message}" for one in findings if one.severity is Severity.ERROR)
        answers = result.outcomes[0].training if 0 in result.outcomes else ()
        yield Trained(
            name,
            {answer.question: answer.answered.value for answer in answers},
            dict(words),
            errors,
            round(result.seconds, 1),
            "" if answers else next((one.message for one in findings), "no answer"),
        )


def table(rows: Sequence[Trained], tp: int) -> Table:
    """How many types answer each question, and how."""
    made = Table("question", "right", "right another way", "wrong", "not asked", title=f"{len(rows)} types at tp {tp}")
    for question in QUESTIONS:
        counts = Counter(row.outcomes.get(question.name, "no run") for row in rows)
        columns = ("right", "right another way", "wrong", "not asked")
        made.add_row(question.name, *(str(counts[column]) for column in columns))
    made.caption = f"{sum(not row.outcomes for row in rows)} types were not run"
    return made
