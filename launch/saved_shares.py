"""What a plan saves, for the commands that tell it."""

from typing import TYPE_CHECKING

from shardproof.planner.ir.plan import Plan
from shardproof.verify.report.report import SharesTold

if TYPE_CHECKING:
    from shardproof.planner.loading.load import LoadedModel


def shares_of(loaded: "LoadedModel", plan: Plan, degree: int) -> SharesTold | None:
    """What the plan saves at a degree; None where it cannot be computed: no tensor plan, a degree that it does not allow."""
    from shardproof.planner.layouts.shares import shares
    from shardproof.planner.tracing.programs import on_meta
    from shardproof.planner.tracing.rank_program import IndivisibleError
    from shardproof.planner.tracing.recorded_run import TraceError

    if degree < 2 or not (plan.tp or plan.head_tp):
        return None
    try:
        return shares(on_meta(loaded), plan, degree)
    except (IndivisibleError, TraceError):
        return None
