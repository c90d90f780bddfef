"""After a refutation: an edit that mends the plan, and whose fault it is; both by running again.

An edit is offered only after ranks agreed with it. Where no edit does, the same plan is applied a second time, from the
style data alone (`verify.run.collectives.own_styles`): where that is right, the client is to blame.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from torch import nn

from shardproof.planner.ir.findings import Fault, Finding, Fix, Severity
from shardproof.planner.ir.plan import Edit, generic, join
from shardproof.planner.ir.styles import STYLES, After, Before
from shardproof.planner.loading.carried_plan import base_prefix
from shardproof.planner.tracing.programs import Subject, on_meta, subject_of
from shardproof.planner.tracing.trace import TraceError
from shardproof.verify.proof.fixes import edited, edits
from shardproof.verify.proof.tensor import check_tensor
from shardproof.verify.stages.case import Applied, Case

Findings = tuple[Finding, ...]
Run = Callable[[Case], Findings | None]
"""What a run of one case finds; None where it was not decided."""

TRIES = 6
"""Edits run on ranks."""
PROOFS = 40
"""Edits looked at in the search for those; the proof puts the likely ones first."""
WHOLE = frozenset(
    style.name for style in STYLES.values() if Before.SPLIT is style.before or After.GATHER is style.after
)
"""Styles that give or take a whole activation where a shard could pass."""
RUN_AGREED = "ranks with the edited plan agreed"


def diagnosed(case: Case, findings: Findings, run: Run) -> Findings:
    """The findings, the first error with what running again showed of it; as they are where it is none of the plan's."""
    position = next((n for n, found in enumerate(findings) if _is_the_plans(found)), None)
    if position is None or case.pp > 1 or case.ep > 1:
        return findings
    fix = _mending(case, findings[position], run)
    if fix is not None:
        first = findings[position]
        place = replace(first.place, entry=fix.edits[0].pattern)
        return (*findings[:position], replace(first, fix=fix, place=place), *findings[position + 1 :])
    own = run(replace(case, applied=Applied.OURS))
    if own is None or any(_is_the_plans(found) for found in own):
        return findings
    return tuple(_the_clients(found) if _is_the_plans(found) else found for found in findings)


def _is_the_plans(finding: Finding) -> bool:
    return finding.severity is Severity.ERROR and finding.fault is Fault.PLAN


def _the_clients(finding: Finding) -> Finding:
    why = f"{finding.why}; a second application of the same plan, from the meaning of its styles alone, is right"
    return replace(finding, fault=Fault.CLIENT, why=why)


def _mending(case: Case, finding: Finding, run: Run) -> Fix | None:
    prefix = base_prefix(on_meta(case.loaded))
    for edit in islice(_likely(case, finding), TRIES):
        again = run(replace(case, plan=case.plan.edited(edit, prefix)))
        if again is not None and not any(found.severity is Severity.ERROR for found in again):
            return Fix(str(edit), (edit,), RUN_AGREED)
    return None


def _likely(case: Case, finding: Finding) -> Iterator[Edit]:
    """Edits that may mend the finding: those that the proof accepts, at the places that it and the run point to.

    One that moves whole activations (a gather, a split of the input) also hides the lack of a shard beside it, and one that takes
    such a style away doubts what somebody wrote on purpose: these come last, those where the run points to first.
    """
    model = on_meta(case.loaded)
    try:
        subject = subject_of(model)
    except TraceError:
        return
    styles = case.plan.styles(subject.prefix)
    wrong = check_tensor(subject, styles, case.tp)
    pointed = [found for found in wrong if found.severity is Severity.ERROR]
    own = [replace(finding, place=replace(finding.place, entry=key)) for key in _raw(model, finding.place.module)]
    tried = dict.fromkeys(islice(_by_turns(subject, styles, [finding, *own, *pointed]), PROOFS))
    costly: list[Edit] = []
    better: list[Edit] = []
    for edit in tried:
        left = check_tensor(subject, edited(styles, edit), case.tp)
        if not left and not {edit.old, edit.new} & WHOLE:
            yield edit
        elif not left:
            costly.append(edit)
        elif len(left) < len(wrong):
            better.append(edit)
    yield from (*costly, *better)


def _raw(model: nn.Module, module: str | None) -> list[str]:
    """Keys of the parameters that a module holds itself and a plan lays out one by one, such as stacked experts."""
    if not module:
        return []
    held = model.get_submodule(module)._parameters
    return [generic(join(module, local)) for local in held if local not in ("weight", "bias")]


def _by_turns(subject: Subject, styles: Mapping[str, str], findings: Sequence[Finding]) -> Iterator[Edit]:
    """The edits of every finding, one of each in turn."""
    left = [iter(edits(subject, styles, finding)) for finding in findings]
    while left:
        for one in list(left):
            if (edit := next(one, None)) is None:
                left.remove(one)
            else:
                yield edit
