"""Translate a plan for one client, or for several at once, into style names that they have and that are proved for them.

Entries of one parent module are changed together. Where a client has no style for a layout, or the proof refutes the layout for
it, the parent's outputs are gathered and its inputs split; where that is not right either, its entries are removed.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

from torch import nn

from shardproof.planner.ir.findings import Finding, Severity, Verdict
from shardproof.planner.ir.plan import Plan, TpEntry, common_parts, generic
from shardproof.planner.ir.readable_text import listing
from shardproof.planner.ir.styles import STYLES, ParameterLayout
from shardproof.planner.loading.carried_plan import base_prefix
from shardproof.planner.loading.load import LoadedModel
from shardproof.planner.tracing.programs import on_meta
from shardproof.verify.clients.dialect import Dialect, Reader, UnknownStyle
from shardproof.verify.clients.prove import prove_for
from shardproof.verify.report.report import LevelResult

TRIES = 20


class Form(IntEnum):
    """How much of the planned layout of a parent's entries is kept."""

    AS_PLANNED = 0
    GATHERED = 1
    WHOLE = 2


@dataclass(frozen=True, slots=True)
class Compiled:
    """A plan for one client or several, its proof in all their dialects, and `losses`: parents whose layout was given up ->
    why.
    """

    plan: Plan
    proof: LevelResult
    losses: Mapping[str, str]


def compile_for(
    dialects: Dialect | Sequence[Dialect], loaded: LoadedModel, plan: Plan, *, tp: int = 2, pp: int = 1
) -> Compiled:
    """The plan in a form that one client, or each of several clients, reads correctly.

    Raises:
        LoadError: the model cannot be built.
    """
    dialects = (dialects,) if isinstance(dialects, Dialect) else tuple(dialects)
    built = on_meta(loaded)
    prefix = base_prefix(built)
    base = built.get_submodule(prefix)
    linears = {generic(path) for path, module in base.named_modules() if isinstance(module, nn.Linear)}
    words = _words(dialects, linears, plan.tp)
    forms: dict[str, Form] = {}
    losses: dict[str, str] = {}
    best: Compiled | None = None
    for _ in range(TRIES):
        written = replace(plan, tp=_written(words, forms, losses), head_tp=_head(dialects, plan))
        proof = _proof(dialects, loaded, written, tp, pp)
        best = Compiled(written, proof, dict(losses))
        wrong = next((f for f in proof.findings if f.severity is Severity.ERROR), None)
        if proof.verdict is not Verdict.REFUTED or wrong is None:
            return best
        pattern = generic((wrong.place.module or "").removeprefix(f"{prefix}."))
        if pattern in linears and (taken := _with_rowwise(dialects, words, wrong, pattern)) is not None:
            words = taken
            continue
        place = wrong.place.entry or (wrong.place.module or "").removeprefix(f"{prefix}.")
        parent = _parent_of(place, plan)
        beside = parent is not None and forms.get(parent) is Form.WHOLE
        if beside:  # what shares its group may be beside it
            parent = _beside(place, plan, {one for one, form in forms.items() if form is Form.WHOLE})
        if parent is None or forms.get(parent) is Form.WHOLE or all(d.reader is Reader.NAMES for d in dialects):
            return best
        forms[parent] = Form(forms.get(parent, Form.AS_PLANNED) + 1)
        if not beside or parent not in losses:
            losses[parent] = f"{wrong.code}: {wrong.message}"
    assert best is not None, "at least one try was made"
    return best


def in_order(plan: Plan) -> Plan:
    """The same plan with every key before those that are a prefix of it.

    An engine uses the first key that matches the beginning of a path; for Transformers the order has no meaning.
    """
    return replace(plan, tp=_in_order(plan.tp))


def _proof(dialects: Sequence[Dialect], loaded: LoadedModel, plan: Plan, tp: int, pp: int) -> LevelResult:
    """The proof in one dialect after the other, until one of them refutes the plan."""
    findings: dict[Finding, None] = {}
    seconds = 0.0
    for dialect in dialects:
        proof = prove_for(dialect, loaded, plan, tp=tp, pp=pp)
        findings |= dict.fromkeys(proof.findings)
        seconds += proof.seconds
        if proof.verdict is Verdict.REFUTED:
            break
    return LevelResult("proof", seconds, tuple(findings))


@dataclass(frozen=True, slots=True)
class _EntryForClients:
    """An entry, the clients that shard by it (`followers`), and those that only must not refuse it (`others`)."""

    entry: TpEntry
    followers: tuple[Dialect, ...]
    others: tuple[Dialect, ...]

    def name(self, effect: str) -> str | None:
        """A style name that has this effect for all followers and that no other client refuses; None where there is none."""
        names = [effect, *(name for dialect in self.followers for name in dialect.styles)]
        return next((name for name in names if self._means(name, effect)), None)

    def _means(self, name: str, effect: str) -> bool:
        return all(d.effect(name) == effect for d in self.followers) and all(_accepts(d, name) for d in self.others)

    def gap(self, effect: str) -> str:
        """Why there is no such style name, as text."""
        missing = [d.name for d in self.followers if effect not in d.styles.values()]
        missing += [d.name for d in self.others if not _accepts(d, effect)]
        if missing:
            return f'{missing[0]} has no "{self.entry.style}"'
        return f'{listing([d.name for d in self.followers])} have no one name for "{self.entry.style}"'


def _words(
    dialects: Sequence[Dialect], linears: Collection[str], entries: tuple[TpEntry, ...]
) -> tuple[_EntryForClients, ...]:
    """The clients of each entry: an engine follows entries of linear layers, but not in `experts` modules, which it runs
    itself.
    """
    found = []
    for entry in entries:
        by_engines = entry.pattern in linears and "experts" not in entry.pattern.split(".")
        followers = tuple(d for d in dialects if by_engines or d.reader is not Reader.ENGINE)
        if followers:
            found.append(_EntryForClients(entry, followers, tuple(d for d in dialects if d not in followers)))
    return tuple(found)


def _parent(pattern: str) -> str:
    return pattern.rpartition(".")[0]


def _parent_of(place: str, plan: Plan) -> str | None:
    """The parent of entries that a place belongs to: the module itself, or the nearest one above or below it."""
    where = generic(place)
    parents = list(dict.fromkeys(_parent(entry.pattern) for entry in plan.tp))
    own = [p for p in parents if p in (where, _parent(where)) or where.startswith(f"{p}.") or p.startswith(f"{where}.")]
    return max(own, key=len, default=None)


def _beside(place: str, plan: Plan, whole: Collection[str]) -> str | None:
    """The parent nearest to a place whose entries are not given up yet; None where none is near."""
    parents = dict.fromkeys(_parent(entry.pattern) for entry in plan.tp)
    near = {one: common_parts(one, generic(place)) for one in parents if one not in whole}
    best = max(near, key=lambda one: near[one], default=None)
    return best if best is not None and near[best] else None


def _with_rowwise(
    dialects: Sequence[Dialect], words: Sequence[_EntryForClients], wrong: Finding, pattern: str
) -> tuple[_EntryForClients, ...] | None:
    """The entries with `rowwise` for a linear layer whose input is sharded by an engine's own decision.

    None where that is not the fault, or was tried.
    """
    tried = any(said.entry.pattern == pattern and said.entry.style == "rowwise" for said in words)
    if wrong.code not in ("TP203", "TP206") or tried or any(d.reader is not Reader.ENGINE for d in dialects):
        return None
    reason = f"{dialects[0].name} gives it a part of its input, so that its output is a sum over the ranks"
    taken = _EntryForClients(
        TpEntry(pattern, "rowwise", reason, "its output is a sum over the ranks"), tuple(dialects), ()
    )
    return (*(said for said in words if said.entry.pattern != pattern), taken)


def _written(words: Sequence[_EntryForClients], forms: dict[str, Form], losses: dict[str, str]) -> tuple[TpEntry, ...]:
    for said in words:
        parent, style = _parent(said.entry.pattern), said.entry.style
        if forms.get(parent, Form.AS_PLANNED) is not Form.AS_PLANNED or _shards_nothing(style) or _of_experts(style):
            continue
        if _name(said, style) is None:
            forms[parent] = Form.GATHERED
            losses[parent] = said.gap(_canonical(style))
    found = []
    for said in words:
        name = _style(said, forms.get(_parent(said.entry.pattern), Form.AS_PLANNED))
        if name is not None:
            found.append(replace(said.entry, style=name))
    return _in_order(tuple(found))


def _in_order(entries: tuple[TpEntry, ...]) -> tuple[TpEntry, ...]:
    found: list[TpEntry] = []
    for entry in entries:
        begun = (number for number, other in enumerate(found) if entry.pattern.startswith(other.pattern))
        found.insert(next(begun, len(found)), entry)
    return tuple(found)


def _of_experts(style: str) -> bool:
    """Whether a style is of experts or the vocabulary table, which engines shard without an entry."""
    return style in (
        "moe_tp_experts",
        "moe_identity_expert",
        "grouped_gemm",
        "ep_dispatch_experts",
        "embedding_rowwise",
    )


def _shards_nothing(style: str) -> bool:
    known = STYLES.get(style)
    return known is not None and known.layout is ParameterLayout.KEEP


def _style(said: _EntryForClients, form: Form) -> str | None:
    """The style name to write for an entry in a form; None for no entry."""
    style = said.entry.style
    tables = {dialect.table_style for dialect in said.followers}
    if style == "embedding_rowwise" and len(tables) == 1:
        (style,) = tables
    if _shards_nothing(style) or _of_experts(said.entry.style):
        # An engine needs no entry for these.
        wanted = any(dialect.reader is not Reader.ENGINE for dialect in said.followers)
        borne = all(_accepts(dialect, style) for dialect in (*said.followers, *said.others))
        return style if wanted and borne and form is Form.AS_PLANNED else None
    if form is Form.WHOLE:
        return None
    if form is Form.GATHERED:
        return said.name("rowwise_split_input" if "row" in style else "colwise_gather_output")
    return _name(said, style)


def _name(said: _EntryForClients, style: str) -> str | None:
    return said.name(style) or said.name(_canonical(style))


def _accepts(dialect: Dialect, style: str) -> bool:
    """Whether a client accepts a plan with this style, whatever it does with it."""
    return dialect.effect(style) is not None or dialect.unknown is UnknownStyle.REPLICATED


def _canonical(style: str) -> str:
    return {"colwise_rep": "colwise_gather_output", "rowwise_rep": "rowwise_split_input"}.get(style, style)


def _head(dialects: Sequence[Dialect], plan: Plan) -> tuple[TpEntry, ...]:
    """Entries of the head class, where a client reads them; engines do not."""
    return plan.head_tp if any(dialect.reads_head for dialect in dialects) else ()
