"""Every type's suggested plan on real ranks that stay warm: seconds for everything compared, and the largest error.

Types come in a random order, the same one every time, so that what a shorter run measured is a fair sample of all.
"""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.progress import track

from benchmarks.types import causal_types
from shardproof.launch.ranks.request import Start
from shardproof.launch.ranks.runner import CaseResult
from shardproof.launch.ranks.torchrun import TorchrunRanks
from shardproof.planner.inference.suggest import suggest
from shardproof.planner.ir.errors import LoadError
from shardproof.planner.ir.findings import Severity
from shardproof.planner.loading.load import load
from shardproof.planner.tracing.recorded_run import TraceError
from shardproof.planner.twins.twin import TwinError, twin
from shardproof.verify.run.verdicts import findings_of, measures_of
from shardproof.verify.stages.case import Case

TOGETHER = 12
"""Types that share one start of the ranks."""
LIMIT = 120.0


@dataclass(frozen=True, slots=True)
class Warm:
    """One type: `seconds` of the clock and `cpu` of the slowest rank for one case, single-device model included; the largest
    relative error of what was compared, and of what. `finding` is the first error, or why it was not run.
    """

    model: str
    seconds: float = 0.0
    cpu: float = 0.0
    error: float = 0.0
    what: str = ""
    finding: str = ""
    raised: bool = False


def cases(names: Sequence[str], tp: int) -> Iterator[tuple[str, Case | str]]:
    """Each type with its case, or with the reason why it has none."""
    for name in names:
        try:
            loaded = load(name)
            plan = suggest(loaded).plan
            yield name, Case(twin(loaded, tp=tp), plan, tp) if plan.tp or plan.head_tp else "nothing to shard"
        except (LoadError, TraceError, TwinError, ValueError) as error:
            yield name, " ".join(str(error).split())[:200]


def measured(names: Sequence[str], tp: int) -> Iterator[Warm]:
    """Types in one group of ranks; a case that ends it costs the next one a start that is not counted."""
    made = dict(cases(names, tp))
    yield from (Warm(name, finding=case) for name, case in made.items() if isinstance(case, str))
    with TorchrunRanks(Start(tp, LIMIT)) as ranks:
        warmed = False
        for name, case in made.items():
            if isinstance(case, str):
                continue
            if not warmed:
                list(ranks.run((case,)))  # the start, and what torch learns with its first case
            (answer,) = list(ranks.run((case,)))
            warmed = len(answer.outcomes) == tp
            yield _warm(name, case, answer)


def _warm(name: str, case: Case, answer: CaseResult) -> Warm:
    if len(answer.outcomes) < case.tp:
        return Warm(
            name,
            answer.seconds,
            finding=f"no answer: {answer.death or 'time ran out'}: {answer.death.words if answer.death else ''}",
            raised=True,
        )
    wrong = [found for found in findings_of(case, answer.outcomes) if found.severity is not Severity.WARNING]
    measures = measures_of(case, answer.outcomes)  # less what the client alone gets wrong
    what = max(measures, key=lambda one: measures[one], default="")
    return Warm(
        name,
        round(answer.seconds, 2),
        round(max(outcome.cpu_seconds for outcome in answer.outcomes.values()), 2),
        measures.get(what, 0.0),
        what,
        f"{wrong[0].code} {wrong[0].message}" if wrong else "",
        any(outcome.failure for outcome in answer.outcomes.values()),
    )


def main(types: tuple[str, ...], out: Path, *, tp: int) -> int:
    """Measure what is missing, print the numbers, write JSON lines; exit 1 where a right plan's error reaches 1e-10."""
    names = list(types or causal_types())
    random.Random(0).shuffle(names)
    rows = [Warm(**json.loads(line)) for line in out.read_text().splitlines()] if out.exists() else []
    left = [name for name in names if name not in {row.model for row in rows}]
    with out.open("a") as file:
        groups = [left[first : first + TOGETHER] for first in range(0, len(left), TOGETHER)]
        for some in track(groups, description="warm", console=Console(stderr=True)):
            for row in measured(some, tp):
                rows.append(row)
                file.write(json.dumps(asdict(row)) + "\n")
                file.flush()
    return _told(rows)


def _told(rows: Sequence[Warm]) -> int:
    console = Console()
    right = [row for row in rows if row.seconds and not row.finding]
    for row in sorted(right, key=lambda row: -row.error)[:5]:
        console.print(f"{row.model}: {row.error:.1e} ({row.what})", markup=False)
    for row in rows:
        if row.finding:
            console.print(f"{row.model}: {row.finding}", markup=False)
    if not right:
        return 1
    seconds, cpu = sorted(row.seconds for row in right), sorted(row.cpu for row in right)
    console.print(
        f"{len(right)} of {len(rows)} types confirmed; median {median(seconds):.2f} s ({median(cpu):.2f} s of one rank's "
        f"processor), slowest {seconds[-1]:.1f} s; largest error {max(row.error for row in right):.1e}"
    )
    return int(any(row.error >= 1e-10 for row in right))
