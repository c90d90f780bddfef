"""What the commands do, as functions from a request to an answer; `launch.cli` reads arguments and prints."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from launch.console import Progress
from planner.ir.findings import Fault, Finding, Place, Severity, Verdict, as_written
from planner.ir.plan import Plan, PlanError, plan_from_json
from verify.environment import environment
from verify.render.json import report_json, suggestion_json
from verify.render.python import suggestion_python
from verify.render.suggestion import Suggested
from verify.render.text import report_text, verdict_sentence
from verify.report import LevelResult, Report

if TYPE_CHECKING:
    from torch import nn

    from planner.api import Suggestion
    from planner.frontend.load import Loaded

EXIT_CODES = {Verdict.PROVED: 0, Verdict.CONFIRMED: 0, Verdict.REFUTED: 1, Verdict.NOT_PROVED: 3}
MISUSE, UNDECIDED = 2, 3


class MisuseError(ValueError):
    """A request that cannot be carried out as it stands; the message is one sentence: what, where, what to do."""


class UndecidedError(RuntimeError):
    """The request was right, and could not be answered; the message is one sentence."""


class Level(StrEnum):
    PROOF = "proof"
    RUN = "run"


class PlanFormat(StrEnum):
    PYTHON = "python"
    JSON = "json"


class ReportFormat(StrEnum):
    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Model:
    """Which model: the reference and how it is to be read."""

    reference: str
    overrides: Mapping[str, str]
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """Degrees on the two axes."""

    tp: int = 1
    pp: int = 1

    def __str__(self) -> str:
        parts = [f"tp {self.tp}"] if self.tp > 1 or self.pp == 1 else []
        return " x ".join([*parts, *([f"pp {self.pp}"] if self.pp > 1 else [])])


@dataclass(frozen=True, slots=True)
class Answer:
    """The text for stdout, and the exit code."""

    text: str
    code: int


def suggest(
    model: Model, *, progress: Progress, form: PlanFormat = PlanFormat.PYTHON, tp: int | None = None
) -> tuple[Answer, Suggested]:
    """Infer a plan, and prove it at `tp`, or at the least legal degree above 1."""
    loaded = _load(model, progress)
    with progress.step(f"inferring a plan for {loaded.title}"):
        suggestion = _infer(loaded)
    degree = tp or next((degree for degree in sorted(suggestion.degrees) if degree > 1), 2)
    with progress.step(f"proving it at tp {degree}"):
        proof = _proof_of_suggestion(loaded, suggestion.plan, degree)
    suggested = Suggested(
        model=loaded.title,
        config_class=type(loaded.config).__name__,
        model_class=loaded.model_class.__name__,
        plan=suggestion.plan,
        degrees=suggestion.degrees,
        sharded_fraction=suggestion.sharded_fraction,
        tp=degree,
        report=Report(loaded.title, (proof,), environment()),
        notes=suggestion.notes,
    )
    text = suggestion_json(suggested) if form is PlanFormat.JSON else suggestion_python(suggested)
    return Answer(text, EXIT_CODES[suggested.report.verdict]), suggested


def _infer(loaded: "Loaded") -> "Suggestion":
    from planner.api import suggest as infer
    from planner.frontend.trace import TraceError

    try:
        return infer(loaded)
    except TraceError as error:
        where = f" at {error.source}" if error.source else ""
        raise UndecidedError(
            f"{loaded.title}: the forward cannot be run without data, so nothing can be inferred{where}: {error}"
        ) from error


def _proof_of_suggestion(loaded: "Loaded", plan: Plan, degree: int) -> LevelResult:
    from verify.static import prove

    if plan.tp or plan.head_tp:
        return prove(loaded, plan, tp=degree)
    # Not refuted: there is no plan that could be wrong.
    nothing = Finding(
        "PL104",
        Severity.UNDECIDED,
        f"No tensor-parallel entry was found for {loaded.title}, so there is nothing to prove.",
        why="no dim of this model was shown to be safe to shard",
        found="no entry",
        needed="at least one group of dims that no op mixes",
        fault=Fault.MODEL,
    )
    return LevelResult("proof", 0.0, (nothing,))


@dataclass(frozen=True, slots=True)
class Verification:
    """What `plan verify` is asked. No levels means: the proof, then the run unless the proof refutes."""

    model: Model
    plan_file: Path | None = None
    layout: Layout = Layout(tp=2)
    levels: tuple[Level, ...] = ()
    form: ReportFormat = ReportFormat.TEXT
    timeout: float = 300.0


def verify(request: Verification, *, progress: Progress) -> Answer:
    """Every level asked for, one after the other."""
    from planner.frontend.load import build, carried_plan

    given = read_plan(request.plan_file) if request.plan_file else None
    loaded = _load(request.model, progress)
    model = build(loaded)
    plan = given if given is not None else carried_plan(loaded, model)
    levels, skipped = _levels(request, loaded, model, plan, progress)
    report = Report(loaded.title, _contradiction_named(levels), environment())
    if request.form is ReportFormat.JSON:
        text = report_json(report)
    else:
        text = report_text(report, layout=str(request.layout), skipped=skipped)
        text += f"\n\n{report.verdict.value}: {verdict_sentence(report.verdict)}"
    return Answer(text, EXIT_CODES[report.verdict])


def _levels(
    request: Verification, loaded: "Loaded", model: "nn.Module", plan: Plan, progress: Progress
) -> tuple[tuple[LevelResult, ...], str]:
    """The results, and a sentence on a level that was not reached."""
    layout, wanted = request.layout, request.levels or tuple(Level)
    malformed = _malformed(model, plan, layout)
    results: list[LevelResult] = []
    if Level.PROOF in wanted:
        with progress.step(f"proving the plan of {loaded.title} at {layout}"):
            results.append(_prove(loaded, model, plan, layout))
    if Level.RUN in wanted:
        if malformed and not results:
            results.append(LevelResult("run", 0.0, malformed))
        elif malformed or (results and not request.levels and results[0].verdict is Verdict.REFUTED):
            return tuple(results), "run    not started: the plan is refuted already"
        else:
            with progress.step(f"running {loaded.title} on {layout.tp * layout.pp} ranks"):
                results.append(_run(loaded, plan, request))
    return tuple(results), ""


def _malformed(model: "nn.Module", plan: Plan, layout: Layout) -> tuple[Finding, ...]:
    """Findings that make a run pointless: the plan is none for this model. A run's own rank would only raise."""
    from planner.frontend.load import base_prefix
    from verify.checks.plan import check_plan

    findings = tuple(as_written(f, base_prefix(model)) for f in check_plan(model, plan, layout.tp))
    return findings if any(finding.severity is Severity.ERROR for finding in findings) else ()


def _prove(loaded: "Loaded", model: "nn.Module", plan: Plan, layout: Layout) -> LevelResult:
    """The proof on both axes: placements for tensor parallelism, and the stages where there are several."""
    from verify.static import prove

    proof = prove(loaded, plan, tp=layout.tp)
    if layout.pp == 1:
        return proof
    began = perf_counter()
    stages = _stages(model, plan)
    return replace(proof, findings=(*proof.findings, *stages), seconds=proof.seconds + perf_counter() - began)


def _stages(model: "nn.Module", plan: Plan) -> tuple[Finding, ...]:
    from planner.frontend.trace import TraceError, trace
    from verify.checks.pipeline import check_pp

    try:
        return check_pp(model, trace(model), plan)
    except TraceError as error:
        place = Place(module=error.module or None, source=error.source)
        message = f"the forward could not be traced, so what crosses a cut is not known: {error}"
        return (Finding("TP210", Severity.UNDECIDED, message, place, fault=Fault.MODEL),)


def _run(loaded: "Loaded", plan: Plan, request: Verification) -> LevelResult:
    from launch.api import confirm

    layout = request.layout
    return confirm(loaded, plan, tp=layout.tp, pp=layout.pp, timeout=request.timeout)


def _contradiction_named(levels: tuple[LevelResult, ...]) -> tuple[LevelResult, ...]:
    """DY507 where the proof holds and the run refutes: that is our bug, and is said.

    A rank that was killed or ran out of time decides nothing, and so contradicts nothing; nor does a fault of the
    client's runtime, of which the proof does not speak.
    """
    if len(levels) != 2 or levels[0].verdict is not Verdict.PROVED:
        return levels
    proof, run = levels
    wrong = [found for found in run.findings if found.severity is Severity.ERROR and found.fault is not Fault.CLIENT]
    if not wrong:
        return levels
    bug = Finding(
        "DY507",
        Severity.ERROR,
        "The proof says `proved` and the run refuted it: this is a bug in shardproof; please report this command.",
        wrong[0].place,
        why="a proof holds for all weights, so no run may contradict it",
        found=f"proof: proved; run: refuted ({', '.join(dict.fromkeys(finding.code for finding in wrong))})",
        needed="two levels that agree",
        fault=Fault.OURS,
    )
    return proof, replace(run, findings=(*run.findings, bug))


def _load(model: Model, progress: Progress) -> "Loaded":
    with progress.step(f"reading {model.reference}"):
        from planner.frontend.load import load

        return load(model.reference, overrides=model.overrides, trust_remote_code=model.trust_remote_code)


def read_plan(path: Path) -> Plan:
    """The plan of a plan file. `MisuseError` where there is none, or none that can be read."""
    try:
        return plan_from_json(json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise MisuseError(
            f"{path}: there is no such plan file; `plan suggest MODEL --format json` writes one."
        ) from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise MisuseError(
            f"{path}: this plan file is not valid JSON ({error.msg} at {place}); correct it there."
        ) from error
    except PlanError as error:
        raise MisuseError(f"{path}: {error}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise MisuseError(
            f"{path}: this plan file cannot be read ({type(error).__name__}); give a JSON file."
        ) from error
