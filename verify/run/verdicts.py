"""From the outcomes of all ranks to findings: one finding a fault, at the place where the fault first shows."""

from collections.abc import Mapping, Sequence

from torch import nn

from shardproof.planner.ir.findings import Fault, Finding, Place, as_written
from shardproof.planner.ir.plan import generic
from shardproof.planner.loading.carried_plan import base_prefix
from shardproof.planner.tracing.programs import on_meta
from shardproof.verify.findings import dy501, dy502, dy503, dy504, dy505, dy506
from shardproof.verify.run.compare.localise import Divergence, entry_of
from shardproof.verify.run.compare.saved import SAVED
from shardproof.verify.run.compare.tensors import Comparison
from shardproof.verify.run.observed import UnknownCacheError
from shardproof.verify.run.outcome import Failure, Outcome, worst
from shardproof.verify.stages.case import Case

_MOST = 4
"""At most so many gradient findings: one fault makes every gradient upstream of it wrong."""


def measures_of(case: Case, outcomes: Mapping[int, Outcome]) -> dict[str, float]:
    """The largest relative error of each kind of comparison, in the order they were made.

    Errors that are the client's own, and are reported as findings, are left out.
    """
    styles = case.plan.styles(base_prefix(on_meta(case.loaded)))
    largest: dict[str, float] = {}
    for comparison in worst(outcomes).values():
        if not _clients_accumulation(case, comparison, styles):
            largest[comparison.what] = max(largest.get(comparison.what, 0.0), comparison.error)
    return largest


def findings_of(case: Case, outcomes: Mapping[int, Outcome]) -> tuple[Finding, ...]:
    """The findings that follow from the outcomes of all ranks; entries as the head model sees them."""
    model = on_meta(case.loaded)
    styles = case.plan.styles(base_prefix(model))
    refused = next((outcome.refused for outcome in outcomes.values() if outcome.refused), None)
    wrong = [comparison for comparison in worst(outcomes).values() if not comparison.right]
    divergence = next((outcome.divergence for outcome in outcomes.values() if outcome.divergence), None)
    found = [*_wrong(case, wrong, styles, divergence)]
    failures = {rank: outcome.failure for rank, outcome in outcomes.items() if outcome.failure}
    if failures and not wrong:  # what is raised after a wrong answer is a consequence of it
        found.append(_failure(failures, case, styles, model))
    if refused:
        found.append(dy504.training_refused(Place(source=refused.source)))
    unasked = next((outcome.unasked for outcome in outcomes.values() if outcome.unasked), {})
    return (*found, *(unasked_finding(stage, error) for stage, error in unasked.items()))


def unasked_finding(stage: str, error: str) -> Finding:
    """The finding of a question that was not compared: undecided if it was asked of no one, a warning if one device raises."""
    kind, _, message = error.partition(": ")
    return dy504.not_asked(stage, message) if kind == UnknownCacheError.__name__ else dy504.not_compared(stage, error)


def written(case: Case, findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Findings with their keys as the plan's own file has them."""
    prefix = base_prefix(on_meta(case.loaded))
    return tuple(as_written(finding, prefix) for finding in findings)


def _failure(failures: Mapping[int, Failure], case: Case, styles: dict[str, str], model: nn.Module) -> Finding:
    """The first failure. Where all ranks failed alike, no rank is named: which of them was first is chance."""
    if all(failure.heard_of for failure in failures.values()):
        return _deadlock(failures)
    failures = {rank: failure for rank, failure in failures.items() if not failure.heard_of}
    alike = len(failures) == case.tp * case.pp and len({(f.stage, f.kind) for f in failures.values()}) == 1
    rank = min(failures) if alike else min(failures, key=lambda rank: failures[rank].when)
    first = failures[rank]
    owners = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    entry = entry_of(first.module, styles) or (generic(first.module) if first.module in owners else None)
    return failure_finding("every rank" if alike else f"rank {rank}", first, entry)


def _deadlock(failures: Mapping[int, Failure]) -> Finding:
    """A deadlock: every rank that answered waited for others in a collective, and none raised an error of its own."""
    first = failures[min(failures)]
    place = Place(None, first.module or None, first.source)
    return dy505.ranks_waited({rank: failure.stage for rank, failure in failures.items()}, place, first.message)


def failure_finding(who: str, failure: Failure, entry: str | None) -> Finding:
    """A rank raised. The plan is to blame, unless the single-device model raised too, the machine was too small, another rank had
    ended, or the exception is of our own code.
    """
    ours = failure.limit or failure.kind == "TimeoutError" or failure.heard_of or failure.ours
    decided = failure.sharded and not ours
    fault = Fault.PLAN if decided else Fault.OURS if ours else Fault.MODEL
    blame = "an error in shardproof itself: " if failure.ours and not (failure.limit or failure.heard_of) else ""
    message = f"{blame}{who} failed in {failure.stage}: {failure.kind}: {failure.message}"
    place = Place(entry, failure.module or None, failure.source)
    return dy504.rank_failed(message, place, kind=failure.kind, decided=decided, fault=fault)


def _wrong(
    case: Case, wrong: Sequence[Comparison], styles: dict[str, str], divergence: Divergence | None
) -> tuple[Finding, ...]:
    """Report wrong weights, else outputs, else decoding, else gradients: each is a consequence of the ones before it."""
    kinds: dict[str, list[Comparison]] = {code: [] for code in ("DY506", "DY501", "DY503", "DY502")}
    lost = [comparison for comparison in wrong if comparison.what == SAVED]
    for comparison in wrong:
        if comparison.what != SAVED:
            kinds[_code(comparison.what)].append(comparison)
    if kinds["DY506"] or (lost and len(lost) == len(wrong)):
        return tuple(_weight(comparison, styles) for comparison in [*kinds["DY506"], *lost][:_MOST])
    if kinds["DY501"]:
        return (_output(kinds["DY501"], divergence),)
    if kinds["DY503"]:
        return (_decode(kinds["DY503"], divergence),)
    return _gradients(case, kinds["DY502"], styles)


def _code(what: str) -> str:
    words = {"gradient": "DY502", "decode": "DY503", "generated": "DY503", "weight": "DY506"}
    return next((code for word, code in words.items() if word in what), "DY501")


def _output(wrong: Sequence[Comparison], divergence: Divergence | None) -> Finding:
    worst_one = max(wrong, key=lambda comparison: comparison.error)
    largest = {one.what: max(other.error for other in wrong if other.what == one.what) for one in wrong}
    return dy501.output_differs(
        largest,
        _place(divergence, worst_one.place),
        first=divergence.module if divergence else None,
        found=divergence.found if divergence else f"relative error {worst_one.error:.1e}",
        needed=divergence.needed if divergence else f"at most {worst_one.limit:.0e}",
    )


def _decode(wrong: Sequence[Comparison], divergence: Divergence | None) -> Finding:
    names = ", ".join(dict.fromkeys(comparison.what for comparison in wrong))
    worst_one = max(wrong, key=lambda comparison: comparison.error)
    place = _place(divergence, wrong[0].place)
    return dy503.decode_differs(names, place, error=worst_one.error, limit=worst_one.limit)


def _place(divergence: Divergence | None, module: str) -> Place:
    return Place(divergence.entry, divergence.module) if divergence else Place(module=module or None)


def _weight(comparison: Comparison, styles: dict[str, str]) -> Finding:
    how = "saved from the ranks" if comparison.what == SAVED else "put together from the ranks' shards"
    entry = entry_of(comparison.place, styles)
    return dy506.parameter_differs(comparison.place, entry, how=how, error=comparison.error)


def _gradients(case: Case, wrong: Sequence[Comparison], styles: dict[str, str]) -> tuple[Finding, ...]:
    """Of layers that repeat, report the last with a wrong gradient: the backward runs from the end to the beginning."""
    once = {comparison.place for comparison in wrong if comparison.what == "gradient"}
    client = [c for c in wrong if c.place not in once and _clients_accumulation(case, c, styles)]
    plain = [comparison for comparison in wrong if comparison not in client]
    by_key = {
        generic(comparison.place): comparison for comparison in reversed(plain) if comparison.place in once or not once
    }
    found = [_gradient(comparison, styles, len(plain)) for comparison in list(by_key.values())[:_MOST]]
    return (*found, *([_accumulation(case, client, styles)] if client else []))


def _gradient(comparison: Comparison, styles: dict[str, str], count: int) -> Finding:
    entry = entry_of(comparison.place, styles)
    module = comparison.place.rpartition(".")[0]
    return dy502.gradient_differs(
        comparison.place,
        Place(entry or generic(module), module or None),
        what=comparison.what,
        error=comparison.error,
        count=count,
        style=styles[entry] if entry else "no entry",
    )


def _clients_accumulation(case: Case, comparison: Comparison, styles: dict[str, str]) -> bool:
    """Whether this is a fault of Transformers' `replicated_with_grad_allreduce`, whatever the plan.

    Its hook reduces the *accumulated* gradient, so after a second backward the first counts `tp` times: `(tp + 1) g`
    where `2 g` is right. Source: transformers 5.23.0, distributed/tensor_parallel.py, `ReplicatedWithGradAllReduce`.
    """
    entry = entry_of(comparison.place, styles)
    counted = (case.tp + 1) / 2
    return (
        entry is not None
        and styles[entry] == "replicated_with_grad_allreduce"
        and abs(comparison.factor - counted) < max(1e-6, comparison.limit)
    )


def _accumulation(case: Case, wrong: Sequence[Comparison], styles: dict[str, str]) -> Finding:
    place = Place(entry_of(wrong[0].place, styles), wrong[0].place.rpartition(".")[0])
    return dy502.accumulated_gradient_differs(place, degree=case.tp, count=len(wrong))
