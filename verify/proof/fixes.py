"""Search for the fewest edits that fix a finding. They are offered only after the edited plan was proved again."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import combinations

from shardproof.planner.inputs.run_modes import RunMode
from shardproof.planner.ir.findings import Finding, Fix, Severity
from shardproof.planner.ir.plan import Edit, join
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
    """The findings, with a fix for the first error where a few edits fix it; the finding then names the first edited entry."""
    for position, finding in enumerate(findings):
        if finding.severity is Severity.ERROR:
            fix = _fix(subject, styles, degree, findings, finding)
            if fix is not None and fix.safety == PROVED:
                finding = replace(finding, place=replace(finding.place, entry=fix.edits[0].pattern))
            return (*findings[:position], replace(finding, fix=fix), *findings[position + 1 :])
    return findings


PROVED = "the edited plan was proved"


MOST_EDITS = 4
"""Edits of one fix: a norm of queries and one of keys are often left out together."""


def _fix(
    subject: Subject, styles: Mapping[str, str], degree: int, findings: tuple[Finding, ...], finding: Finding
) -> Fix | None:
    """The edit after which the plan is proved; else a chain of edits that each take the first finding away."""
    search = _EditSearch(subject, degree, max(TRIED_OPS // len(subject.graph.ops), 8))
    chain: list[_Edited] = []
    while len(chain) < MOST_EDITS:
        step = search.best(chain[-1] if chain else _Edited((), dict(styles), findings), finding)
        if step is None:
            break
        chain.append(step)
        if not step.left:
            made = tuple(edit for one in chain for edit in one.edits)
            return Fix("; ".join(map(str, made)), made, PROVED)
        finding = next((one for one in step.left if one.severity is Severity.ERROR), step.left[0])
    if not chain or len(chain[0].left) >= len(findings):
        return None
    left = f"the edited plan no longer has this finding; {len(chain[0].left)} others remain"
    return Fix("; ".join(map(str, chain[0].edits)), chain[0].edits, left)


@dataclass(frozen=True, slots=True)
class _Edited:
    """A plan after more edits, and the findings that are left."""

    edits: tuple[Edit, ...]
    styles: dict[str, str]
    left: tuple[Finding, ...]


@dataclass(slots=True)
class _EditSearch:
    """Tries edits of plans, up to `budget` of them."""

    subject: Subject
    degree: int
    budget: int

    def best(self, before: _Edited, finding: Finding) -> _Edited | None:
        """The plan after the edit that gets furthest, of those that take this finding away and get further than before; or
        after two alike edits of two entries, where they get to the end.
        """
        single = edits(self.subject, before.styles, finding)
        one = self._furthest(before, finding, [(edit,) for edit in single])
        if one is not None and not one.left:
            return one
        two = self._furthest(before, finding, [pair for pair in combinations(single, 2) if _alike(*pair)])
        return two if two is not None and (one is None or not two.left) else one

    def _furthest(self, before: _Edited, finding: Finding, tried: Sequence[tuple[Edit, ...]]) -> _Edited | None:
        best, furthest = None, self._proof_progress(before.left)
        for changes in tried:
            if self.budget == 0:
                break
            self.budget -= 1
            after = reduce(edited, changes, before.styles)
            left = check_tensor(self.subject, after, self.degree) or _in_other_modes(self.subject, after, self.degree)
            if not left:
                return _Edited(changes, after, ())
            reached = self._proof_progress(left)
            if reached > furthest and not _has(left, finding):
                best, furthest = _Edited(changes, after, left), reached
        return best

    def _proof_progress(self, left: tuple[Finding, ...]) -> tuple[bool, int, int]:
        """How far a proof got: to the backward, to which module, and how few findings it has there."""
        errors = [one for one in left if one.severity is Severity.ERROR]
        ran = {call.module: at for at, call in reversed(list(enumerate(self.subject.graph.calls)))}
        places = [ran.get(one.place.module or "", -1) for one in errors]
        backward = all(one.code in BACKWARD for one in errors)
        return backward, 0 if backward else min(places, default=0), -len(left)


def _alike(one: Edit, other: Edit) -> bool:
    """Whether two edits make the same of two entries."""
    return one.pattern != other.pattern and (one.old, one.new) == (other.old, other.new)


BACKWARD = frozenset({"TP207", "TP208"})
"""Codes of gradients: the forward of such a plan is right."""


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
        yield from {given.rpartition(".")[0]} & {subject.graph.key(path) for path in owners}
        yield from (pattern for pattern in styles if pattern.rpartition(".")[0] == given)
        yield from _tied(subject, given)
    module = finding.place.module or ""
    scope = module if any(path.startswith(f"{module}.") for path in owners) else module.rpartition(".")[0]
    near = dict.fromkeys(subject.graph.key(path) for path in owners if path.startswith(f"{scope}."))
    yield from (pattern for pattern in near if pattern != given and scope)


def _tied(subject: Subject, pattern: str) -> Iterator[str]:
    """Patterns of other modules that hold the same (tied) parameter."""
    numbers = {n for m in subject.graph.modules if subject.graph.key(m.path) == pattern for _, n in m.parameters}
    for module in subject.graph.modules:
        if subject.graph.key(module.path) != pattern and any(number in numbers for _, number in module.parameters):
            yield subject.graph.key(module.path)


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
    calls = (call for call in subject.graph.calls if subject.graph.key(call.module) == pattern)
    return any(len(call.arguments) > 1 for call in calls)


def _applies(subject: Subject, pattern: str, style: str) -> bool:
    """Whether a style can be applied to the modules or parameters that a pattern names."""
    if style == "mla_kv_a_proj" and not hasattr(subject.model.config, "qk_rope_head_dim"):
        return False
    if style == "moe_tp_experts" and not _takes_routing(subject, pattern):
        return False
    needs = STYLES[style].needs
    modules = [module for module in subject.graph.modules if subject.graph.key(module.path) == pattern]
    if modules:
        numbers = dict(modules[0].numbers)
        is_table = "Embedding" in modules[0].bases
        return (needs is None or needs in numbers) and (is_table or not style.startswith("embedding"))
    names = (join(module.path, local) for module in subject.graph.modules for local, _ in module.parameters)
    return style in ("colwise", "packed_colwise", "rowwise") and any(
        subject.graph.key(name) == pattern for name in names
    )
