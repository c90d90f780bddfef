"""After a run refuted a plan: search for an edit that fixes it, else find out whether the plan or the client is to blame.

An edit is offered only after ranks ran it without an error. Where no edit fixes the plan, it is run again with our own
application of its styles (`verify.run.collectives.own_styles`): if that run is right, the client is to blame.
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
from shardproof.planner.tracing.recorded_run import TraceError
from shardproof.verify.proof.fixes import edited, edits
from shardproof.verify.proof.tensor import check_tensor
from shardproof.verify.stages.case import Applied, Case

Findings = tuple[Finding, ...]
Run = Callable[[Case], Findings | None]
"""Runs a case and returns its findings; None where the run was not decided."""

TRIES = 6
"""At most so many edits are run on ranks."""
PROOFS = 40
"""At most so many edits are proved, to choose those that are run."""
WHOLE = frozenset(
    style.name for style in STYLES.values() if Before.SPLIT is style.before or After.GATHER is style.after
)
"""Styles that split a whole input or gather a whole output, where a shard could be passed."""
RUN_AGREED = "ranks with the edited plan agreed"


def diagnosed(case: Case, findings: Findings, run: Run) -> Findings:
    """The findings, with a fix or another `fault` for the first error of the plan; unchanged where there is none."""
    position = next((n for n, found in enumerate(findings) if _is_the_plans(found)), None)
    if position is None or case.pp > 1 or case.ep > 1:
        return findings
    fix = _working_edit(case, findings[position], run)
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


def _working_edit(case: Case, finding: Finding, run: Run) -> Fix | None:
    prefix = base_prefix(on_meta(case.loaded))
    for edit in islice(_likely(case, finding), TRIES):
        again = run(replace(case, plan=case.plan.edited(edit, prefix)))
        if again is not None and not any(found.severity is Severity.ERROR for found in again):
            return Fix(str(edit), (edit,), RUN_AGREED)
    return None


def _likely(case: Case, finding: Finding) -> Iterator[Edit]:
    """Edits that may fix the finding: those that the proof accepts, at the places that the run and the proof report.

    An edit that adds a gather or a split of the input can also hide a missing shard next to it, and an edit that removes such a
    style contradicts its author. Both come last.
    """
    model = on_meta(case.loaded)
    try:
        subject = subject_of(model)
    except TraceError:
        return
    styles = case.plan.styles(subject.prefix)
    wrong = check_tensor(subject, styles, case.tp)
    pointed = [found for found in wrong if found.severity is Severity.ERROR]
    own = [
        replace(finding, place=replace(finding.place, entry=key))
        for key in _parameter_keys(model, finding.place.module)
    ]
    tried = dict.fromkeys(islice(_alternating(subject, styles, [finding, *own, *pointed]), PROOFS))
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


def _parameter_keys(model: nn.Module, module: str | None) -> list[str]:
    """Keys of a module's own parameters that have entries of their own in plans, such as stacked experts."""
    if not module:
        return []
    held = model.get_submodule(module)._parameters
    return [generic(join(module, local)) for local in held if local not in ("weight", "bias")]


def _alternating(subject: Subject, styles: Mapping[str, str], findings: Sequence[Finding]) -> Iterator[Edit]:
    """The edits of all findings, alternating between the findings."""
    left = [iter(edits(subject, styles, finding)) for finding in findings]
    while left:
        for one in list(left):
            if (edit := next(one, None)) is None:
                left.remove(one)
            else:
                yield edit
