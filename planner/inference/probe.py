"""Try a proposal: run it as a per-rank program on meta tensors and relate that to the single-device program."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from torch import nn

from shardproof.planner.ir.findings import Source
from shardproof.planner.ir.graph import Graph
from shardproof.planner.propagation.assign import Assigned, assign
from shardproof.planner.propagation.backward import GradientFault, gradient_faults, nearest
from shardproof.planner.propagation.propagate import explain_failure, propagate
from shardproof.planner.propagation.reach import strided
from shardproof.planner.propagation.relation import Stuck
from shardproof.planner.tracing.programs import local_program
from shardproof.planner.tracing.rank_program import IndivisibleError, trace_local
from shardproof.planner.tracing.trace import TraceError
from shardproof.planner.weights.conversions import Misplaced, misplaced
from shardproof.planner.weights.init_weights import UnloadableError, check_initial


class Verdict(Enum):
    RIGHT = "right"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Probe:
    """What a proposal came to: right in forward, or the entry, the module and the reason; then the gradients' faults."""

    verdict: Verdict
    reason: str = ""
    module: str = ""
    entry: str | None = None
    gradients: tuple[GradientFault, ...] = ()


def prober(
    model: nn.Module, graph: Graph, base_prefix: str, unfixed: Mapping[Source, int] | None = None
) -> Callable[[Mapping[str, str], int], Probe]:
    """A probe for one meta model, whose single-device program is `graph`."""

    def probe(styles: Mapping[str, str], degree: int) -> Probe:
        assigned = assign(graph, styles, base_prefix=base_prefix)
        if mixed := misplaced(model, assigned, degree):
            return _mixed(mixed[0])
        try:
            check_initial(model, assigned)
            local = (
                trace_local(model, assigned, degree, unfixed=unfixed)
                if unfixed
                else local_program(model, assigned, degree)
            )
        except IndivisibleError as error:
            return Probe(Verdict.WRONG, str(error), error.parameter.rpartition(".")[0], error.entry)
        except UnloadableError as error:
            return Probe(Verdict.WRONG, str(error), error.module, error.entry)
        except TraceError as error:
            return _failed(graph, assigned, degree, error)
        ran = propagate(graph, local, assigned, degree)
        if ran.stuck:
            return _stuck(ran.stuck[0])
        for op, entry in strided(local, assigned):
            why = f"it is given a transposed tensor ({op.source}), which the client cannot view as rows where it trains"
            return Probe(Verdict.WRONG, why, op.module, entry)
        return Probe(Verdict.RIGHT, gradients=tuple(nearest(ran, gradient_faults(ran, assigned))))

    return probe


def _failed(graph: Graph, assigned: Assigned, degree: int, error: TraceError) -> Probe:
    before = error.before
    stuck = explain_failure(graph, before, error.failed, assigned, degree)[0] if before is not None else None
    if stuck is not None:
        return _stuck(stuck)
    where = f" ({error.source})" if error.source else ""
    return Probe(Verdict.WRONG, f"a rank's forward fails in {error.module}{where}: {error}", error.module)


def _mixed(found: Misplaced) -> Probe:
    why = f"a checkpoint holds {found.name} as {', '.join(found.sources)}, which is cut before it is converted"
    return Probe(Verdict.WRONG, why, found.name.rpartition(".")[0], found.entry)


def _stuck(stuck: Stuck) -> Probe:
    where = f" ({stuck.op.source})" if stuck.op is not None and stuck.op.source else ""
    return Probe(Verdict.WRONG, f"{stuck.message}{where}: {stuck.why}", stuck.module, stuck.entry)
