"""Try a proposal: what the judge says of it, in the words that an inference needs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias, assert_never

from shardproof.planner.ir.findings import Source
from shardproof.planner.judge import (
    Fault,
    NoLookup,
    RankFails,
    Strided,
    Unlike,
    Unregistered,
    Untraced,
    WrittenOutput,
    judge,
)
from shardproof.planner.propagation.backward import GradientFault
from shardproof.planner.propagation.forward.relation import Stuck
from shardproof.planner.propagation.reach import Unreachable
from shardproof.planner.tracing.programs import Subject
from shardproof.planner.tracing.rank_program import IndivisibleError
from shardproof.planner.weights.conversions import Misplaced
from shardproof.planner.weights.init_weights import UnloadableError


@dataclass(frozen=True, slots=True)
class Probe:
    """What a proposal came to: right, or why not, in which module, and under which entry.

    `gradients` are faults of the backward of a proposal that is right so far: an entry more may mend them.
    """

    right: bool
    reason: str = ""
    module: str = ""
    entry: str | None = None
    gradients: tuple[GradientFault, ...] = ()


Prober: TypeAlias = Callable[[Mapping[str, str], int], Probe]
"""From entries (keys as the head model sees them) and a degree to what they came to."""


def prober(subject: Subject, *others: Subject, unfixed: Mapping[Source, int] | None = None) -> Prober:
    """A probe for one model on meta; `unfixed` as `planner.judge.judge` takes it.

    `others` are the same model in other modes: what is right in the first is tried in these too.
    """

    def probe(styles: Mapping[str, str], degree: int) -> Probe:
        found = _probe(subject, styles, degree, unfixed)
        for other in others if found.right else ():
            there = _probe(other, styles, degree, unfixed)
            if not there.right:
                return there
            found = found if found.gradients else there
        return found

    return probe


def _probe(subject: Subject, styles: Mapping[str, str], degree: int, unfixed: Mapping[Source, int] | None) -> Probe:
    found = judge(subject, styles, degree, unfixed=unfixed)
    mendable = tuple(fault for fault in found.gradients if isinstance(fault, GradientFault))
    others = (fault for fault in found.gradients if not isinstance(fault, GradientFault))
    first = next(iter((*found.loading, *found.forward, *others, *found.undecided)), None)
    return Probe(True, gradients=mendable) if first is None else _wrong(first)


def _wrong(fault: Fault) -> Probe:
    match fault:
        case Misplaced():
            why = f"a checkpoint holds {fault.name} as {', '.join(fault.sources)}, which is cut before it is converted"
            return Probe(False, why, fault.name.rpartition(".")[0], fault.entry)
        case IndivisibleError():
            return Probe(False, str(fault), fault.parameter.rpartition(".")[0], fault.entry)
        case UnloadableError():
            return Probe(False, str(fault), fault.module, fault.entry)
        case RankFails(error, stuck):
            where = f" ({error.source})" if error.source else ""
            why = f"a rank's forward fails in {error.module}{where}: {error}"
            return _stuck(stuck) if stuck is not None else Probe(False, why, error.module)
        case Stuck():
            return _stuck(fault)
        case Unreachable(op, parameter, entry):
            why = f"{parameter} is read by {op.module or 'the model'} ({op.source}), past the module that holds it"
            return Probe(False, why, op.module, entry)
        case Strided(op, entry):
            why = f"it is given a transposed tensor ({op.source}), which the client cannot view as rows where it trains"
            return Probe(False, why, op.module, entry)
        case WrittenOutput(op, module, entry):
            why = (
                f"{op.target} writes to the output of {module} in place ({op.source}), which autograd refuses on a rank"
            )
            return Probe(False, why, op.module, entry)
        case Untraced(parameter, entry):
            return Probe(False, f"{parameter} takes part in no traced op", parameter.rpartition(".")[0], entry)
        case NoLookup(module, entry):
            return Probe(False, "a style for tables stands on a module that looks nothing up", module, entry)
        case Unregistered(style, entry):
            return Probe(False, f"the installed Transformers has no style {style}", entry, entry)
        case Unlike(module, entry, _, why):
            return Probe(False, f"the installed Transformers {why}", module, entry)
        case GradientFault():
            raise AssertionError("a fault of the backward is mended by an entry, or given up by the inference")
        case _:
            assert_never(fault)


def _stuck(stuck: Stuck) -> Probe:
    where = f" ({stuck.op.source})" if stuck.op is not None and stuck.op.source else ""
    return Probe(False, f"{stuck.message}{where}: {stuck.why}", stuck.module, stuck.entry)
