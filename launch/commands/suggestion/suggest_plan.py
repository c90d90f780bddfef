"""Infer a plan and prove it, at one degree and for one client or for all of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shardproof.launch.commands.read_inputs import read_dialect
from shardproof.launch.output.console import Progress
from shardproof.launch.result import UndecidedError
from shardproof.launch.saved_shares import shares_of
from shardproof.planner.ir.degrees import Degrees
from shardproof.planner.ir.findings import Verdict
from shardproof.planner.ir.plan import Plan
from shardproof.verify.findings import pl104
from shardproof.verify.report.client_readings import Everywhere
from shardproof.verify.report.difference import Difference
from shardproof.verify.report.environment import environment
from shardproof.verify.report.report import LevelResult, Report
from shardproof.verify.report.suggestion import Suggested

if TYPE_CHECKING:
    from shardproof.planner.inference.suggest import Suggestion
    from shardproof.planner.loading.load import LoadedModel
    from shardproof.verify.clients.dialect import Dialect


ALL = "all"
"""The value of `--for` that asks for one plan that is right in every serving client."""


@dataclass(frozen=True)
class _ProvedPlan:
    """A suggestion, and the plan that was made of it with its proof; `fraction` is the share of parameter bytes that it shards, 0
    to 1, `losses` says what a client does not shard.
    """

    suggestion: "Suggestion"
    degrees: Degrees
    plan: Plan
    proof: LevelResult
    fraction: float
    losses: tuple[str, ...] = ()
    everywhere: Everywhere | None = None


def suggest_plan(
    loaded: "LoadedModel",
    *,
    progress: Progress,
    tp: int | None = None,
    compared: bool = False,
    client: str | None = None,
    why: bool = False,
) -> Suggested:
    """Infer a plan and prove it.

    Args:
        loaded: the model.
        progress: reports the steps.
        tp: the degree of the proof; by default the least legal one above 1.
        compared: also compare with the plan that the model carries.
        client: give the plan in this client's dialect; by default in Transformers', with what every serving client makes of it.
        why: also explain the plan.

    Raises:
        UndecidedError: the forward cannot be traced.
    """
    dialects = _dialects(client) if client is not None else ()
    suggestion, degrees = _inferred(loaded, progress, why=why, tp=tp)
    degree = tp or next((degree for degree in degrees.legal if degree > 1), 2)
    with progress.step(f"proving it at tp {degree}"):
        if dialects:
            proved = _compiled(loaded, suggestion, degrees, dialects, degree)
        else:
            proved = _proved(loaded, suggestion, degrees, degree)
    suggestion, plan = proved.suggestion, proved.plan
    shares = None if dialects else shares_of(loaded, plan, degree)
    return Suggested(
        model=loaded.title,
        config_class="" if loaded.is_module else type(loaded.config).__name__,
        model_class=loaded.model_class.__name__,
        plan=plan,
        degrees=proved.degrees,
        sharded_fraction=proved.fraction,
        tp=degree,
        report=Report(loaded.title, (proved.proof,), environment(), shares=shares),
        notes=(*suggestion.notes, *proved.losses),
        lost=proved.losses,
        differences=_differences(loaded, suggestion, degree, progress) if compared else None,
        explanation=suggestion.explanation,
        owners=suggestion.owners,
        everywhere=proved.everywhere,
        left=() if dialects else suggestion.left,
    )


def _inferred(loaded: "LoadedModel", progress: Progress, *, why: bool, tp: int | None) -> tuple["Suggestion", Degrees]:
    """A plan and its legal degrees; where `tp` is none of them, another plan that is right at `tp`."""
    with progress.step(f"inferring a plan for {loaded.title}"):
        suggestion = _infer(loaded, why=why)
    with progress.step("finding the legal degrees"):
        degrees = _degrees(loaded, suggestion.plan)
    if tp is not None and tp > 1 and tp not in degrees.legal:
        with progress.step(f"inferring a plan that is right at tp {tp}"):
            suggestion = _infer(loaded, why=why, tp=tp)
            degrees = _degrees(loaded, suggestion.plan)
    return suggestion, degrees


def _proved(loaded: "LoadedModel", suggestion: "Suggestion", degrees: Degrees, degree: int) -> _ProvedPlan:
    """The plan for every client with its proof; without the entries that the proof refutes."""
    plan, everywhere = _everywhere(loaded, suggestion.plan, degree)
    proof = _proof_of_suggestion(loaded, plan, degree)
    if proof.verdict is Verdict.REFUTED:
        suggestion, proof = _right_part(loaded, replace(suggestion, plan=plan), degree)
        plan, degrees, everywhere = suggestion.plan, _degrees(loaded, suggestion.plan), None
    return _ProvedPlan(suggestion, degrees, plan, proof, suggestion.sharded_fraction, everywhere=everywhere)


def _dialects(client: str) -> tuple["Dialect", ...]:
    from shardproof.verify.clients.common_plan import serving
    from shardproof.verify.clients.diffusers.dialect import DIFFUSERS
    from shardproof.verify.clients.torchtitan.parallelize import PARALLELIZE

    own = {PARALLELIZE.client: PARALLELIZE, DIFFUSERS.client: DIFFUSERS}
    if client in own:
        return (own[client],)
    return serving() if client == ALL else (read_dialect(client),)


def _everywhere(loaded: "LoadedModel", plan: Plan, degree: int) -> tuple[Plan, Everywhere | None]:
    """A plan that every serving client reads in the same way, where there is one, and the verdict for each client."""
    from shardproof.verify.clients.common_plan import everywhere

    if (
        loaded.is_module or loaded.adapters or not (plan.tp or plan.head_tp)
    ):  # no serving client takes a module of any class, nor an adapter by a plan
        return plan, None
    return everywhere(loaded, plan, tp=degree)


def _compiled(
    loaded: "LoadedModel", suggestion: "Suggestion", degrees: Degrees, dialects: Sequence["Dialect"], degree: int
) -> _ProvedPlan:
    """The plan in the dialect of one or several clients with its proof; the fraction is that of the first client."""
    from shardproof.planner.tracing.programs import on_meta, subject_of
    from shardproof.verify.clients.compile import compile_for
    from shardproof.verify.clients.reading import sharded_in
    from shardproof.verify.clients.torchtitan.parallelize import PARALLELIZE, without_shared

    plan, losses = suggestion.plan, tuple[str, ...]()
    model = on_meta(loaded)
    subject = subject_of(model)
    if dialects == (PARALLELIZE,):
        plan, shared = without_shared(model, subject.prefix, plan)
        losses = tuple(
            f"{path} stays whole: parallelize_module would part its weight from the one tied to it" for path in shared
        )
    compiled = compile_for(dialects, loaded, plan, tp=degree)
    losses += tuple(f"{parent or 'the base model'}: {why}" for parent, why in compiled.losses.items())
    reach = tuple(f"it reaches {dialect.name} by {dialect.reach}" for dialect in dialects if dialect.reach)
    fraction = sharded_in(dialects[0], subject, compiled.plan, degree)
    return _ProvedPlan(suggestion, degrees, compiled.plan, compiled.proof, fraction, (*losses, *reach))


def _differences(
    loaded: "LoadedModel", suggestion: "Suggestion", degree: int, progress: Progress
) -> tuple[Difference, ...]:
    from shardproof.planner.loading.carried_plan import carried_plan
    from shardproof.planner.tracing.programs import on_meta
    from shardproof.verify.proof.compare_plans import compare

    with progress.step(f"comparing it with the plan that {loaded.title} carries"):
        model = on_meta(loaded)
        return compare(model, suggestion.graph, carried_plan(loaded, model), suggestion.plan, tp=degree)


def _infer(loaded: "LoadedModel", *, why: bool, tp: int | None = None) -> "Suggestion":
    from shardproof.launch.proved_suggestion import suggest as infer
    from shardproof.planner.tracing.recorded_run import TraceError

    try:
        return infer(loaded, why=why, tp=tp)
    except TraceError as error:
        where = f" at {error.source}" if error.source else ""
        raise UndecidedError(
            f"{loaded.title}: the forward cannot be run without data, so nothing can be inferred{where}: {error}"
        ) from error


def _degrees(loaded: "LoadedModel", plan: Plan) -> Degrees:
    from shardproof.verify.proof.degrees import legal_degrees

    return legal_degrees(loaded, plan)


def _right_part(loaded: "LoadedModel", suggestion: "Suggestion", degree: int) -> tuple["Suggestion", LevelResult]:
    from shardproof.launch.proved_suggestion import right_part

    left, proof = right_part(loaded, suggestion, degree)
    return left, proof or _nothing_to_prove(loaded)


def _proof_of_suggestion(loaded: "LoadedModel", plan: Plan, degree: int) -> LevelResult:
    from shardproof.verify.proof.prove import prove

    return prove(loaded, plan, tp=degree) if plan.tp or plan.head_tp else _nothing_to_prove(loaded)


def _nothing_to_prove(loaded: "LoadedModel") -> LevelResult:
    return LevelResult("proof", 0.0, (pl104.nothing_to_prove(loaded.title),))
