"""A plan in the words of one client: the same layout where it has the words, the nearest that is proved where it has not.

Entries of one parent stand and fall together. Where a client cannot say a layout, or the proof refutes it there, the
parent's outputs are gathered and its inputs split, and where that is not right either its entries go.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum

from torch import nn

from planner.frontend.load import Loaded, base_prefix
from planner.frontend.traced import on_meta
from planner.ir.findings import Severity, Verdict
from planner.ir.plan import Plan, TpEntry, generic
from planner.ir.styles import STYLES, Layout
from verify.backends.dialect import Dialect, Reader
from verify.backends.proof import prove_for
from verify.report import LevelResult

TRIES = 12


class Form(IntEnum):
    """How much of a parent's layout is left."""

    AS_PLANNED = 0
    GATHERED = 1
    WHOLE = 2


@dataclass(frozen=True, slots=True)
class Compiled:
    """A plan for one client, its proof, and what had to be given up: a parent's path -> why."""

    plan: Plan
    proof: LevelResult
    losses: Mapping[str, str]


def compile_for(dialect: Dialect, loaded: Loaded, plan: Plan, *, tp: int = 2, pp: int = 1) -> Compiled:
    """The plan as one client should be given it.

    Raises:
        LoadError: the model cannot be built.
    """
    built = on_meta(loaded)
    prefix = base_prefix(built)
    if dialect.reader is Reader.ENGINE:
        plan = replace(plan, tp=_of_linears(built.get_submodule(prefix), plan.tp))
    forms: dict[str, Form] = {}
    losses: dict[str, str] = {}
    best: Compiled | None = None
    for _ in range(TRIES):
        written = replace(plan, tp=_written(dialect, plan.tp, forms, losses), head_tp=_head(dialect, plan))
        proof = prove_for(dialect, loaded, written, tp=tp, pp=pp)
        best = Compiled(written, proof, dict(losses))
        wrong = next((f for f in proof.findings if f.severity is Severity.ERROR), None)
        if proof.verdict is not Verdict.REFUTED or wrong is None or dialect.reader is Reader.NAMES:
            return best
        place = wrong.place.entry or (wrong.place.module or "").removeprefix(f"{prefix}.")
        parent = _parent_of(place, plan)
        if parent is None or forms.get(parent) is Form.WHOLE:
            return best
        forms[parent] = Form(forms.get(parent, Form.AS_PLANNED) + 1)
        losses[parent] = f"{wrong.code}: {wrong.message}"
    assert best is not None, "at least one try was made"
    return best


def _of_linears(base: nn.Module, entries: tuple[TpEntry, ...]) -> tuple[TpEntry, ...]:
    """Entries of linear layers: an engine looks at no other, and at none of an `experts` module, which it runs itself."""
    linears = {generic(path) for path, module in base.named_modules() if isinstance(module, nn.Linear)}
    return tuple(e for e in entries if e.pattern in linears and "experts" not in e.pattern.split("."))


def _parent(pattern: str) -> str:
    return pattern.rpartition(".")[0]


def _parent_of(place: str, plan: Plan) -> str | None:
    """The parent of entries that a place belongs to: its own, or the nearest around or below it."""
    where = generic(place)
    parents = list(dict.fromkeys(_parent(entry.pattern) for entry in plan.tp))
    own = [p for p in parents if p in (where, _parent(where)) or where.startswith(f"{p}.") or p.startswith(f"{where}.")]
    return max(own, key=len, default=None)


def _written(
    dialect: Dialect, entries: tuple[TpEntry, ...], forms: dict[str, Form], losses: dict[str, str]
) -> tuple[TpEntry, ...]:
    if dialect.reader in (Reader.TRANSFORMERS, Reader.NAMES):
        return entries
    for entry in entries:
        parent = _parent(entry.pattern)
        if forms.get(parent, Form.AS_PLANNED) is Form.AS_PLANNED and not _sayable(dialect, entry.style):
            forms[parent] = Form.GATHERED
            losses[parent] = f'{dialect.name} has no "{entry.style}"'
    found = []
    for entry in entries:
        style = _style(dialect, entry.style, forms.get(_parent(entry.pattern), Form.AS_PLANNED))
        if style is not None:
            found.append(replace(entry, style=style))
    # A longer key before a shorter one: an engine takes the first that matches the beginning of a path.
    return (
        tuple(sorted(found, key=lambda entry: -len(entry.pattern.rpartition(".")[2])))
        if _clash(found)
        else tuple(found)
    )


def _clash(entries: list[TpEntry]) -> bool:
    return any(a is not b and b.pattern.startswith(a.pattern) for a in entries for b in entries)


def _sayable(dialect: Dialect, style: str) -> bool:
    return _shards_nothing(style) or _name(dialect, _canonical(style)) is not None or _of_experts(style)


def _of_experts(style: str) -> bool:
    """Styles of stacked experts: engines run experts by themselves, and need no entry."""
    return style in (
        "moe_tp_experts",
        "moe_identity_expert",
        "grouped_gemm",
        "ep_dispatch_experts",
        "embedding_rowwise",
    )


def _shards_nothing(style: str) -> bool:
    known = STYLES.get(style)
    return known is not None and known.layout is Layout.KEEP


def _style(dialect: Dialect, style: str, form: Form) -> str | None:
    """The client's name for a style in a form; None for no entry."""
    if _shards_nothing(style) or _of_experts(style):
        return style if dialect.hooks_gradients and dialect.effect(style) is not None else None
    if form is Form.WHOLE:
        return None
    wanted = _canonical(style)
    if form is Form.GATHERED:
        wanted = "rowwise_split_input" if "row" in wanted else "colwise_gather_output"
    return _name(dialect, wanted)


def _canonical(style: str) -> str:
    return {"colwise_rep": "colwise_gather_output", "rowwise_rep": "rowwise_split_input"}.get(style, style)


def _name(dialect: Dialect, effect: str) -> str | None:
    """What the client calls a style with this effect; its own name for it first."""
    names = [name for name, does in dialect.styles.items() if does == effect]
    return effect if effect in names else next(iter(names), None)


def _head(dialect: Dialect, plan: Plan) -> tuple[TpEntry, ...]:
    """Entries of the head class: engines never see them."""
    return plan.head_tp if dialect.reads_head else ()
