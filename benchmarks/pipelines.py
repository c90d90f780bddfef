"""Pipeline plans of every type: inferred, proved, compared with upstream's text, and run on real ranks.

One JSON line a type, so that an interrupted sweep goes on where it stopped; `docs/pipelines.md` is written from them.
"""

import json
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType

import transformers
from rich.console import Console
from rich.progress import track

from benchmarks.types import causal_types
from shardproof.launch.ranks.confirm import Engine, confirm_cases
from shardproof.planner.inference.pipeline import cut_nowhere, infer_pipeline
from shardproof.planner.ir.errors import LoadError
from shardproof.planner.ir.findings import Finding, Severity, Verdict
from shardproof.planner.ir.plan import Plan, PpEntry
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import carried_plan
from shardproof.planner.loading.load import load
from shardproof.planner.tracing.recorded_run import TraceError
from shardproof.planner.tracing.trace import trace
from shardproof.planner.twins.twin import TwinError, twin
from shardproof.verify.proof.pipeline import check_pp
from shardproof.verify.report.report import LevelResult
from shardproof.verify.stages.case import Case, Schedule, Staging

RANKS = 2
SAMPLE = 24
"""Of so many types one is run on real ranks too."""
STAGES = (2, 4)
LIMIT, LONGEST = 120, 400
"""Seconds for one type to be inferred and proved, and for one case of it to run (some mixers are slow without their kernels)."""
PAGE = Path(__file__).parents[1] / "docs" / "pipelines.md"


@dataclass(frozen=True, slots=True)
class Row:
    """One type: `runs` maps a number of stages to a verdict, `ranks` likewise where real ranks were asked too; `decoded` where
    decoding through the cache was compared; `reason` says why it is not all confirmed.
    """

    model: str
    proof: str = ""
    upstream: str = ""
    plan: tuple[str, ...] = ()
    runs: dict[str, str] = field(default_factory=dict)
    ranks: dict[str, str] = field(default_factory=dict)
    decoded: bool = False
    error: float = 0.0
    reason: str = ""
    seconds: float = 0.0

    @property
    def right(self) -> bool:
        """Proved, and confirmed at every number of stages."""
        confirmed = all(self.runs.get(str(count)) == Verdict.CONFIRMED.value for count in STAGES)
        return self.proof == Verdict.PROVED.value and confirmed


def main(types: tuple[str, ...], out: Path, *, tp: int) -> int:
    """Sweep these types (all causal-LM types by default); exit 1 where proof and run contradict each other, or threads and ranks.

    `tp` is another benchmark's.
    """
    del tp
    console = Console(stderr=True)
    known = read(out)
    left = [name for name in types or causal_types() if name not in known]
    for name in track(left, description="pipelines", console=console):
        known[name] = judged(name)
        with out.open("a") as lines:
            lines.write(json.dumps(asdict(known[name])) + "\n")
    shown = [known[name] for name in types or sorted(known)]
    Console().print(summary(shown))
    if not types:
        PAGE.write_text(page(shown))
    return int(any(_contradicts(row) for row in shown))


def read(out: Path) -> dict[str, Row]:
    """What an earlier sweep found, the last line of a type."""
    lines = out.read_text().splitlines() if out.exists() else []
    rows = [Row(**{**(data := json.loads(line)), "plan": tuple(data["plan"])}) for line in lines]
    return {row.model: row for row in rows}


def judged(name: str) -> Row:
    """One type, its ranks as threads; every so many types also on real ranks."""
    row, plan = _begun(name)
    if plan is None:
        return row
    for count in STAGES:
        try:
            case = _case(name, plan, count)
        except (TwinError, TimeoutError) as error:
            return replace(row, reason=row.reason or _line(str(error)))
        row = _with_run(row, count, _asked(case, "inprocess"))
        if name in causal_types()[::SAMPLE]:
            real = _asked(case, "ranks")
            row = replace(row, ranks={**row.ranks, str(count): real.verdict.value})
    return row


def _asked(case: Case, engine: Engine) -> LevelResult:
    return confirm_cases((case,), timeout=LONGEST, engine=engine)[0]


def _begun(name: str) -> tuple[Row, Plan | None]:
    """One type inferred and proved; no plan where that does not come to an end."""
    started = time.perf_counter()
    try:
        with limited(LIMIT):
            loaded = load(name)
            model = build(loaded)
            graph = trace(model)
            base, head = infer_pipeline(model, graph)
            plan = Plan(pp=base, head_pp=head)
            if (uncut := cut_nowhere(model, graph, base)) is not None:
                return Row(name, "no plan", reason=_line(uncut), seconds=time.perf_counter() - started), None
            findings = check_pp(model, graph, plan)
            upstream = _compared(plan, carried_plan(loaded, model))
    except (LoadError, TraceError, TimeoutError, ValueError) as error:
        return Row(name, "not built" if isinstance(error, LoadError) else "not traced", reason=_line(str(error))), None
    row = Row(name, LevelResult("proof", 0.0, findings).verdict.value, upstream, _written((*base, *head)))
    return replace(row, reason=_first(findings), seconds=time.perf_counter() - started), plan


def _case(name: str, plan: Plan, stages: int) -> Case:
    """All on two ranks: four stages are two chunks of layers on each, interleaved."""
    rounds = stages // RANKS
    with limited(LIMIT):
        small = twin(load(name), tp=1, pp=stages)
    return Case(
        small, plan, 1, RANKS, staging=Staging(Schedule.ONE_F_ONE_B if rounds == 1 else Schedule.INTERLEAVED, rounds)
    )


def _with_run(row: Row, stages: int, result: LevelResult) -> Row:
    why = _first(result.findings)
    return replace(
        row,
        runs={**row.runs, str(stages): result.verdict.value},
        error=max(row.error, *result.measures.values(), 0.0) if result.measures else row.error,
        decoded=row.decoded or "decoded logits" in result.measures,
        reason=row.reason or (f"{stages} stages: {why}" if why else ""),
        seconds=row.seconds + result.seconds,
    )


def _first(findings: Sequence[Finding]) -> str:
    """The message of the first finding that decides; warnings do not."""
    return next((_line(f"{f.code} {f.message}") for f in findings if f.severity is not Severity.WARNING), "")


def _line(text: str) -> str:
    return " ".join(text.split())[:300]


def _written(entries: Sequence[PpEntry]) -> tuple[str, ...]:
    return tuple(f"{e.module}: {', '.join(e.inputs)} -> {', '.join(e.outputs)}" for e in entries)


def _compared(ours: Plan, theirs: Plan) -> str:
    """How upstream's plan relates to ours."""
    if not theirs.pp:
        return "none"
    if theirs.pp == ours.pp and theirs.head_pp == ours.head_pp:
        return "same text"
    modules = [entry.module for entry in ours.pp]
    return "other names" if modules == [entry.module for entry in theirs.pp] else "other modules"


def _contradicts(row: Row) -> bool:
    otherwise = any(row.runs[stages] != verdict for stages, verdict in row.ranks.items())
    return otherwise or (Verdict.REFUTED.value in row.runs.values() and row.proof == Verdict.PROVED.value)


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """`TimeoutError` in this thread after so many seconds."""

    def over(_: int, __: FrameType | None) -> None:
        raise TimeoutError(f"not done in {seconds} s")

    held = signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, held)


def summary(rows: Sequence[Row]) -> str:
    """The counts, one a line."""
    built = [row for row in rows if row.proof != "not built"]
    proofs = Counter(row.proof for row in built)
    upstream = Counter(row.upstream for row in built if row.upstream)
    lines = [
        f"{sum(row.right for row in built)} of {len(built)} types that build: proved, and confirmed at {_stages()} stages",
        "proof: " + _counted(proofs),
        *(f"{n} stages: " + _counted(Counter(row.runs.get(str(n), "not run") for row in built)) for n in STAGES),
        "upstream's plan: " + _counted(upstream),
        f"proved and refuted by a run: {sum(map(_contradicts, built))}",
    ]
    return "\n".join(lines)


def _stages() -> str:
    return " and ".join(map(str, STAGES))


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def page(rows: Sequence[Row]) -> str:
    """docs/pipelines.md."""
    right, other = [row for row in rows if row.right], [row for row in rows if not row.right]
    lines = [
        "# Pipeline plans of every causal-LM type",
        "",
        f"Transformers {transformers.__version__}. For each type the plan is inferred at full size and proved there; its twin",
        f"is then run at {_stages()} stages on two ranks, by 1F1B and interleaved 1F1B (forward, left-padded forward, loss,",
        "gradients, prefill and cached decode, float64), and compared with one device. Written by",
        f"`python -m benchmarks pipelines`. Swept so far: {len(rows)} of {len(causal_types())} types.",
        "",
        *(f"- {line}" for line in summary(rows).splitlines()),
        "",
        "## Not confirmed, and why",
        "",
        "| type | proof | runs | reason |",
        "|---|---|---|---|",
        *(f"| {row.model} | {row.proof} | {_runs(row)} | {_escaped(row.reason)} |" for row in other),
        "",
        "## Proved and confirmed",
        "",
        "| type | largest error | upstream's plan | modules |",
        "|---|---|---|---|",
        *(f"| {row.model} | {row.error:.0e} | {row.upstream} | {_modules(row)} |" for row in right),
        "",
    ]
    return "\n".join(lines)


def _runs(row: Row) -> str:
    return ", ".join(f"{count}: {verdict}" for count, verdict in row.runs.items()) or "none"


def _modules(row: Row) -> str:
    return ", ".join(f"`{line.partition(':')[0]}`" for line in row.plan)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
