"""Search for an edit that fixes a finding. An edit is offered only after the edited plan was proved again."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice

from shardproof.planner.inputs.run_modes import RunMode
from shardproof.planner.ir.findings import Finding, Fix, Severity
from shardproof.planner.ir.plan import Edit, generic, join
from shardproof.planner.ir.styles import STYLES
from shardproof.planner.tracing.programs import Subject, other_modes, subject_of
from shardproof.verify.proof.tensor import check_tensor

STYLES_TO_TRY = (
    "colwise",
    "rowwise",
    "packed_colwise",
    "colwise_gather_output",
    "rowwise_split_input",
    "replicated_with_grad_allreduce",
    "mla_kv_a_proj",
    "embedding_rowwise",
    "moe_tp_experts",
)
LAST_RESORTS = ("colwise_gather_output", "rowwise_split_input")
TRIED_OPS = 30_000
"""The budget of the search, in traced ops: small models get more tries than large ones."""


def with_fix(
    subject: Subject, styles: Mapping[str, str], degree: int, findings: tuple[Finding, ...]
) -> tuple[Finding, ...]:
    """The findings, with a fix for the first error where a single edit fixes it; the finding then names the edited entry."""
    for position, finding in enumerate(findings):
        if finding.severity is Severity.ERROR:
            fix = _fix(subject, styles, degree, findings, finding)
            if fix is not None and fix.safety == PROVED:
                finding = replace(finding, place=replace(finding.place, entry=fix.edits[0].pattern))
            return (*findings[:position], replace(finding, fix=fix), *findings[position + 1 :])
    return findings


PROVED = "the edited plan was proved"


def _fix(
    subject: Subject, styles: Mapping[str, str], degree: int, findings: tuple[Finding, ...], finding: Finding
) -> Fix | None:
    best: tuple[int, Edit] | None = None
    for edit in islice(edits(subject, styles, finding), max(TRIED_OPS // len(subject.graph.ops), 8)):
        left = check_tensor(subject, edited(styles, edit), degree)
        if not left:
            left = _in_other_modes(subject, edited(styles, edit), degree)
        if not left:
            return Fix(str(edit), (edit,), PROVED)
        if (best is None or len(left) < best[0]) and len(left) < len(findings) and not _has(left, finding):
            best = (len(left), edit)
    if best is None:
        return None
    return Fix(str(best[1]), (best[1],), f"the edited plan no longer has this finding; {best[0]} others remain")


def _in_other_modes(subject: Subject, styles: Mapping[str, str], degree: int) -> tuple[Finding, ...]:
    """Findings of a plan that is right in the subject's mode, in the first other mode that has any."""
    others = (subject_of(subject.model), *other_modes(subject.model))
    apart = (other for other in others if _mode(other) is not _mode(subject))
    return next((found for other in apart if (found := check_tensor(other, styles, degree))), ())


def _mode(subject: Subject) -> RunMode:
    return subject.script.mode if subject.script is not None else RunMode.EVALUATION


def edits(subject: Subject, styles: Mapping[str, str], finding: Finding) -> tuple[Edit, ...]:
    """Edits of one entry that may fix a finding, likeliest first; none of them has been tried.

    Gathering an output or splitting an input fixes many faults at the price of a collective. Such edits come last, unless they
    are what the finding's code calls for.
    """
    found = (
        edit for entry in _suspects(subject, styles, finding) for edit in _edits(subject, styles, entry, finding.code)
    )
    asked = ASKED.get(finding.code, ())
    return tuple(sorted(found, key=lambda edit: edit.new in LAST_RESORTS and edit.new not in asked))


def _suspects(subject: Subject, styles: Mapping[str, str], finding: Finding) -> Iterator[str]:
    """Patterns to edit: the finding's own entry, then modules with parameters near the place of the finding."""
    given = finding.place.entry
    owners = [m.path for m in subject.graph.modules if m.path and m.parameters and m.repeats is None]
    if given is not None:
        yield given
        # A parameter's entry gives its placement; its module's entry says which collectives run.
        yield from {given.rpartition(".")[0]} & {generic(path) for path in owners}
        yield from (pattern for pattern in styles if pattern.rpartition(".")[0] == given)
        yield from _tied(subject, given)
    module = finding.place.module or ""
    scope = module if any(path.startswith(f"{module}.") for path in owners) else module.rpartition(".")[0]
    near = dict.fromkeys(generic(path) for path in owners if path.startswith(f"{scope}."))
    yield from (pattern for pattern in near if pattern != given and scope)


def _tied(subject: Subject, pattern: str) -> Iterator[str]:
    """Patterns of other modules that hold the same (tied) parameter."""
    numbers = {n for m in subject.graph.modules if generic(m.path) == pattern for _, n in m.parameters}
    for module in subject.graph.modules:
        if generic(module.path) != pattern and any(number in numbers for _, number in module.parameters):
            yield generic(module.path)


def _has(findings: tuple[Finding, ...], finding: Finding) -> bool:
    return any(other.code == finding.code and other.place.entry == finding.place.entry for other in findings)


def edited(styles: Mapping[str, str], edit: Edit) -> dict[str, str]:
    """The styles after one edit."""
    kept = {pattern: style for pattern, style in styles.items() if pattern != edit.pattern}
    return kept if edit.new is None else {**kept, edit.pattern: edit.new}


def _edits(subject: Subject, styles: Mapping[str, str], pattern: str, code: str) -> Iterator[Edit]:
    """Edits of one pattern, likeliest first: those that the finding's code calls for, then styles that shard the same side and
    those of sibling modules, then the other styles, then no entry.
    """
    have = styles.get(pattern)
    extra = have is not None and (code in EXTRA or have in ("all_reduce", "sequence_parallel"))
    if extra:
        yield Edit(pattern, have, None)
    siblings = [style for other, style in styles.items() if other.rpartition(".")[0] == pattern.rpartition(".")[0]]
    family = _family(have)
    likely = sorted(
        dict.fromkeys((*siblings, *STYLES_TO_TRY)), key=lambda s: (_family(s) != family, -siblings.count(s))
    )
    asked = [style for style in ASKED.get(code, ()) if style != have]
    for style in dict.fromkeys((*asked, *likely)):
        if style != have and style in STYLES and _applies(subject, pattern, style):
            yield Edit(pattern, have, style)
    if have is not None and not extra:
        yield Edit(pattern, have, None)


EXTRA = frozenset({"TP202", "TP205", "TP208"})
"""Codes that mean one collective too many: remove the entry."""

ASKED: Mapping[str, tuple[str, ...]] = {
    "TP206": ("colwise_gather_output",),
    "TP207": ("replicated_with_grad_allreduce", "mla_kv_a_proj"),
    "TP212": ("colwise_gather_output", "embedding_rowwise"),
    "TP213": ("packed_colwise", "colwise_gather_output"),
    "TP215": ("local_params",),
    "TP217": ("rowwise_split_input", "colwise_gather_output"),
}
"""By code, the styles that usually fix it."""


def _family(style: str | None) -> str:
    """Which side of a weight a style shards, packed or not."""
    layout = STYLES[style].layout.value if style is not None and style in STYLES else ""
    return layout.removeprefix("packed ")


def _takes_routing(subject: Subject, pattern: str) -> bool:
    """Whether modules under a pattern are called as experts are: with hidden states, and with the tensors of their routing."""
    calls = (call for call in subject.graph.calls if generic(call.module) == pattern)
    return any(len(call.arguments) > 1 for call in calls)


def _applies(subject: Subject, pattern: str, style: str) -> bool:
    """Whether a style can be applied to the modules or parameters that a pattern names."""
    if style == "mla_kv_a_proj" and not hasattr(subject.model.config, "qk_rope_head_dim"):
        return False
    if style == "moe_tp_experts" and not _takes_routing(subject, pattern):
        return False
    needs = STYLES[style].needs
    modules = [module for module in subject.graph.modules if generic(module.path) == pattern]
    if modules:
        numbers = dict(modules[0].numbers)
        is_table = "Embedding" in modules[0].bases
        return (needs is None or needs in numbers) and (is_table or not style.startswith("embedding"))
    names = (join(module.path, local) for module in subject.graph.modules for local, _ in module.parameters)
    return style in ("colwise", "packed_colwise", "rowwise") and any(generic(name) == pattern for name in names)
