"""The exact set of tensor-parallel degrees at which a plan is right, and what forbids every other degree.

A proof at one degree says which sizes have to divide (`planner.propagation.limits`), and these sizes decide almost every
degree. A program may behave differently where a rank's part is a single element, so those degrees, and the largest, are proved
one by one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from torch import nn
from transformers import PretrainedConfig

from shardproof.planner.ir.degrees import MOST_RANKS, Degrees, Limit, degrees_within
from shardproof.planner.ir.findings import Finding, Place, Severity
from shardproof.planner.ir.placement import Shard
from shardproof.planner.ir.plan import Plan
from shardproof.planner.judge import alike_parts
from shardproof.planner.loading.carried_plan import base_prefix
from shardproof.planner.loading.load import LoadedModel, load
from shardproof.planner.propagation.assign import Assigned, assign
from shardproof.planner.propagation.forward.propagate import Propagation
from shardproof.planner.propagation.limits import limits, lone_sizes
from shardproof.planner.tracing.programs import Subject, on_meta, subject_of
from shardproof.planner.tracing.recorded_run import TraceError
from shardproof.planner.weights.block_layout import blocked_sides
from shardproof.verify.proof.plan_form import check_plan
from shardproof.verify.proof.prove import not_traced
from shardproof.verify.proof.tensor import check_relation, check_tensor, relate


def legal_degrees(model: LoadedModel | str, plan: Plan) -> Degrees:
    """Every degree up to `MOST_RANKS` at which a plan is right, and what forbids each of the others.

    Args:
        model: a loaded model or a reference to one.
        plan: hand-written or suggested; its pipeline and expert-parallel entries are ignored.

    Raises:
        LoadError: the reference names no model.
    """
    loaded = load(model) if isinstance(model, str) else model
    built = on_meta(loaded)
    prefix = base_prefix(built)
    found = _of_model(built, plan, prefix)
    return _rewritten(found, lambda limit: _named(_as_written(limit, prefix), loaded.config))


def _of_model(built: nn.Module, plan: Plan, prefix: str) -> Degrees:
    for least in (1, 2):
        if wrong := [f for f in check_plan(built, plan, least) if f.severity is not Severity.WARNING]:
            return _all_wrong(wrong[0], least)
    try:
        subject = subject_of(built)
    except TraceError as error:
        return _all_wrong(not_traced(error))
    return _degrees(subject, plan.styles(prefix))


def _degrees(subject: Subject, styles: Mapping[str, str]) -> Degrees:
    assigned = assign(subject.graph, styles, base_prefix=subject.prefix)
    wrong: dict[int, Finding] = {}
    for degree in _primes(subject, assigned):
        ran = relate(subject, assigned, degree)
        findings = check_relation(subject, ran, assigned) if isinstance(ran, Propagation) else ran
        if isinstance(ran, Propagation) and not findings:
            bounds = (
                *_whole_blocks(subject, assigned),
                *limits(ran, assigned, alike=alike_parts(subject.model, assigned)),
            )
            return _tried(subject, styles, bounds, lone_sizes(ran) - {degree})
        wrong[degree] = findings[0]
        if findings[0].code != "TP201" and not _any_uneven(subject, assigned, degree):
            return _all_wrong(findings[0])  # no size that does not divide explains the fault
    return _none_right(wrong)


def _whole_blocks(subject: Subject, assigned: Assigned) -> Iterator[Limit]:
    """Of a quantised checkpoint: every rank has to hold whole blocks."""
    for one in blocked_sides(subject.graph, assigned, subject.model):
        count = one.count // one.block if one.count % one.block == 0 else 1
        what = f"{count} whole blocks of {one.block} {one.side} with one scale each"
        yield Limit(count, even=True, what=what, place=Place(one.entry, one.module), unit=one.block)


def _primes(subject: Subject, assigned: Assigned) -> Iterator[int]:
    """Degrees to try first. Divisors of a legal degree are legal, so primes suffice; a prime that divides no sharded dim tells
    no more than 2 does.
    """
    sizes = {
        subject.graph.values[subject.graph.parameters[name]].shape[placement.dim]
        for name, (placement, _) in assigned.parameters.items()
        if isinstance(placement, Shard)
    }
    for degree in range(2, MOST_RANKS + 1):
        prime = all(degree % divisor for divisor in range(2, int(degree**0.5) + 1))
        if degree == 2 or (prime and any(size % degree == 0 for size in sizes)):
            yield degree


def _any_uneven(subject: Subject, assigned: Assigned, degree: int) -> bool:
    return any(
        subject.graph.values[subject.graph.parameters[name]].shape[placement.dim] % (degree * placement.blocks)
        for name, (placement, _) in assigned.parameters.items()
        if isinstance(placement, Shard)
    )


def _tried(subject: Subject, styles: Mapping[str, str], bounds: tuple[Limit, ...], alone: frozenset[int]) -> Degrees:
    """The degrees within the bounds, less those in `alone` (and the largest) at which a proof of their own fails."""
    found = degrees_within(bounds)
    faults = _faults(subject, styles, [degree for degree in found.legal if degree in alone])
    if found.legal[-1] not in alone and (wrong := _faults(subject, styles, found.legal[-1:])):
        # The code contains a number that is no size of a dim: only a proof of each degree can tell.
        faults |= wrong | _faults(subject, styles, found.legal[1:-1])
    return degrees_within(bounds, faults) if faults else found


def _faults(subject: Subject, styles: Mapping[str, str], degrees: Iterable[int]) -> dict[int, Limit]:
    findings = {degree: check_tensor(subject, styles, degree) for degree in degrees if degree > 1}
    return {degree: _fault(wrong[0]) for degree, wrong in findings.items() if wrong}


def _fault(finding: Finding) -> Limit:
    return Limit(None, even=False, what=finding.message, place=finding.place)


def _all_wrong(finding: Finding, least: int = 2) -> Degrees:
    return degrees_within((), dict.fromkeys(range(least, MOST_RANKS + 1), _fault(finding)))


def _none_right(wrong: Mapping[int, Finding]) -> Degrees:
    """No degree is legal: each is forbidden by its least prime factor that was tried, or by the first prime."""
    faults = {prime: _fault(finding) for prime, finding in wrong.items()}
    first = next(iter(faults.values()))
    of = {d: next((f for prime, f in faults.items() if d % prime == 0), first) for d in range(2, MOST_RANKS + 1)}
    return degrees_within((), of)


def _rewritten(found: Degrees, change: Callable[[Limit], Limit]) -> Degrees:
    changed = {limit: change(limit) for limit, _ in found.limits}
    return Degrees(found.legal, {degree: changed[limit] for degree, limit in found.forbidden.items()})


def _as_written(limit: Limit, prefix: str) -> Limit:
    """With its key as the plan's own file has it."""
    entry = limit.place.entry.removeprefix(f"{prefix}.") if limit.place.entry and prefix else limit.place.entry
    return replace(limit, place=replace(limit.place, entry=entry))


def _named(limit: Limit, config: PretrainedConfig) -> Limit:
    """With the name of its size in the config, where no more than two fields have that value."""
    numbers = {key: value for key, value in config.get_text_config().to_dict().items() if type(value) is int}
    size = limit.size * limit.unit if limit.size is not None else None
    names = [key for key, value in numbers.items() if value == size]
    return replace(limit, what=f"{limit.what} ({' or '.join(names)})") if 1 <= len(names) <= 2 else limit
