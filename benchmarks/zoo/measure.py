"""What is measured of one type, in a process of its own: reads requests as lines on stdin, answers each with one line.

A request is `{"row": ROW, "level": "proof" | "run" | "ranks", "once": BOOL, "shipped": BOOL}`, the answer the row with what was
found. `once` asks for one degree, `shipped` for the plan that the model carries too.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from benchmarks.zoo.rows import Judged, Row, row_of
from shardproof.planner.inference.suggest import Suggestion, sharded_fraction, suggest
from shardproof.planner.inputs.example import example_inputs
from shardproof.planner.ir.errors import LoadError
from shardproof.planner.ir.findings import Finding, Severity
from shardproof.planner.ir.plan import Plan
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import base_prefix, carried_plan
from shardproof.planner.loading.load import LoadedModel, load
from shardproof.planner.tracing.recorded_run import TraceError
from shardproof.planner.tracing.trace import trace
from shardproof.planner.twins.small_configs import shallower
from shardproof.planner.twins.twin import TwinError, twin
from shardproof.verify.proof.prove import prove
from shardproof.verify.report.report import LevelResult

DEGREES = (2, 4)
"""Judged at these, where the suggested plan's degrees allow; else at its smallest."""
PATIENCE = 120.0
"""Seconds for one case on ranks."""

_GRAVEST = (Severity.ERROR, Severity.UNDECIDED, Severity.WARNING)

Result = TypeVar("Result")


def proved(name: str, *, once: bool = False, shipped: bool = True) -> Row:
    """Build, trace, suggest and prove, each timed; then, where `shipped`, the same proof of the plan that the model carries."""
    seconds: dict[str, float] = {}
    row = Row(name, "load", seconds=seconds)
    try:
        loaded = measured_model(name)
        row = replace(row, stage="build")
        build(loaded)  # the imports of the modeling code, untimed
        model = _timed(seconds, "build", lambda: build(loaded))
        row = replace(row, stage="suggest")
        graph = _timed(seconds, "trace", lambda: trace(model))
        row = replace(row, ops=len(graph.ops), inputs=tuple(example_inputs(model)), notes=graph.notes)
        suggestion = _timed(seconds, "suggest", lambda: suggest(loaded))
        row = replace(row, stage="prove", degrees=suggestion.degrees)
        mine = Judged(suggestion.sharded_fraction, suggestion.plan.to_json())
        degrees = judged_at(suggestion.degrees)[: 1 if once else None]
        row = replace(row, mine=_with_proofs(mine, loaded, suggestion.plan, degrees, seconds))
        row = replace(row, upstream=_upstream(loaded, suggestion, degrees) if shipped else None)
        return replace(row, stage="done")
    except (LoadError, TraceError, ValueError) as error:
        return replace(row, reason=_reason(error))


LAYERS = 3
"""Layers of each stack of a module that is no Transformers model: its plan is the same at any depth."""


def measured_model(name: str) -> LoadedModel:
    """The model of a row: a reference, with `key=value` behind it for fields that are given."""
    reference, *given = name.split(" ")
    return shallower(load(reference, overrides=dict(one.split("=", 1) for one in given)), layers=LAYERS)


def _reason(error: Exception) -> str:
    where = f" in {error.module} ({error.source})" if isinstance(error, TraceError) else ""
    return f"{' '.join(str(error).split())}{where}"


def judged_at(degrees: Iterable[int]) -> tuple[int, ...]:
    """The degrees at which a plan is proved and run."""
    legal = [degree for degree in degrees if degree > 1]
    return tuple(degree for degree in DEGREES if degree in legal) or tuple(legal[:1]) or DEGREES[:1]


def _timed(seconds: dict[str, float], what: str, work: Callable[[], Result]) -> Result:
    began = time.process_time()
    try:
        return work()
    finally:
        seconds[what] = round(time.process_time() - began, 3)


def _with_proofs(
    judged: Judged, loaded: LoadedModel, plan: Plan, degrees: tuple[int, ...], seconds: dict[str, float] | None = None
) -> Judged:
    for degree in degrees:
        result = _timed({} if seconds is None else seconds, "prove", partial(prove, loaded, plan, tp=degree))
        judged = _judged(judged, "proof", degree, result)
    return judged


def _judged(judged: Judged, level: str, degree: int, result: LevelResult) -> Judged:
    verdicts = {**getattr(judged, level), str(degree): result.verdict.value}
    findings = {key: value for key, value in judged.findings.items() if key != f"{level} {degree}"}
    if result.findings:
        findings[f"{level} {degree}"] = _told(min(result.findings, key=lambda found: _GRAVEST.index(found.severity)))
    if level == "proof":
        return replace(judged, findings=findings, proof=verdicts)
    errors = {key: value for key, value in judged.errors.items() if key != str(degree)}
    raised = any(found.code == "DY504" and found.severity is not Severity.WARNING for found in result.findings)
    if result.measures and not raised:
        errors[str(degree)] = max(result.measures.values())
    return replace(judged, findings=findings, run=verdicts, errors=errors)


def _told(finding: Finding) -> str:
    return f"{finding.code} {finding.message} [{finding.place}]"


def _upstream(loaded: LoadedModel, suggestion: Suggestion, degrees: tuple[int, ...]) -> Judged | None:
    model = build(loaded)
    plan = carried_plan(loaded, model)
    if not (plan.tp or plan.head_tp):
        return None
    fraction = sharded_fraction(suggestion.graph, plan, base_prefix(model))
    return _with_proofs(Judged(fraction, plan.to_json()), loaded, plan, degrees)


def ran(row: Row, engine: Literal["inprocess", "ranks"]) -> Row:
    """The plans of a proved row on ranks that are threads or processes, all that have one degree in one start."""
    from shardproof.launch.ranks.confirm import confirm_cases
    from shardproof.verify.stages.case import Case

    began, seconds = time.monotonic(), dict(row.seconds)
    try:
        for degree in sorted({int(degree) for judged in (row.mine, row.upstream) if judged for degree in judged.proof}):
            small = twin(measured_model(row.name), tp=degree)
            plans = {key: judged for key in ("mine", "upstream") if (judged := getattr(row, key)) and _any(judged)}
            cases = tuple(Case(small, Plan.from_json(judged.plan), degree, 1) for judged in plans.values())
            results = confirm_cases(cases, timeout=PATIENCE, engine=engine)
            seconds[f"run {degree}"] = round(results[0].seconds, 1) if results else 0.0
            for (key, judged), result in zip(plans.items(), results, strict=True):
                row = replace(row, **{key: _judged(judged, "run", degree, result)})  # type: ignore[arg-type]  # a field's name
    except (LoadError, TwinError, ValueError) as error:
        return replace(row, stage="twin", reason=_reason(error))
    return replace(row, stage="done", reason="", seconds={**seconds, "run": round(time.monotonic() - began, 1)})


def _any(judged: Judged) -> bool:
    plan = Plan.from_json(judged.plan)
    return bool(plan.tp or plan.head_tp)


def _answer(row: Row, level: str, *, once: bool, shipped: bool) -> Row:
    try:
        if level == "proof":
            return proved(row.name, once=once, shipped=shipped)
        return ran(row, "ranks" if level == "ranks" else "inprocess")
    except Exception as error:  # our own bug: a line of the table too
        where = "; ".join(
            f"{Path(at.filename).name}:{at.lineno}" for at in traceback.extract_tb(error.__traceback__)[-4:]
        )
        return replace(row, stage="crash", reason=f"{level}: {type(error).__name__}: {error} ({where})"[:600])


def main() -> None:
    """Answer until stdin ends. What libraries print goes to stderr: stdout is for answers."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        once, shipped = request.get("once", False), request.get("shipped", True)
        answer = _answer(row_of(request["row"]), request["level"], once=once, shipped=shipped)
        answers.write(answer.line() + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
