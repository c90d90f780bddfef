"""Compare two plans of one model entry by entry, and say for each difference which of them the proof supports."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from torch import nn

from shardproof.planner.ir.findings import Finding, Severity
from shardproof.planner.ir.graph import Graph
from shardproof.planner.ir.plan import Edit, Plan, PpEntry, TpEntry
from shardproof.planner.loading.carried_plan import base_prefix
from shardproof.planner.tracing.programs import Subject
from shardproof.planner.transformers_facts.styles import is_unmodelled
from shardproof.verify.proof.experts import DISPATCH, STACKED, check_experts
from shardproof.verify.proof.pipeline import check_pp
from shardproof.verify.proof.plan_form import check_plan
from shardproof.verify.proof.tensor import check_tensor
from shardproof.verify.report.difference import Backed, Difference

T = TypeVar("T")


def compare(model: nn.Module, graph: Graph, first: Plan, second: Plan, *, tp: int) -> tuple[Difference, ...]:
    """Every difference in the tensor, pipeline and expert entries, each decided by proving both plans with that entry exchanged.

    An axis on which one of them has no entry at all is not compared: there is no plan to put an entry into.

    Args:
        model: the model on the meta device; graph: its trace.
        first, second: the plans; tp: the degree of the proof, at least 2.
    """
    tensor = all(plan.tp or plan.head_tp for plan in (first, second))
    pipeline = all(plan.pp or plan.head_pp for plan in (first, second))
    return (
        *(_tensor(model, graph, first, second, tp) if tensor else ()),
        *(_pipeline(model, graph, first, second) if pipeline else ()),
        *(_experts(graph, base_prefix(model), first, second, tp) if first.ep and second.ep else ()),
    )


def _tensor(model: nn.Module, graph: Graph, first: Plan, second: Plan, tp: int) -> list[Difference]:
    prefix = base_prefix(model)
    one, two = first.styles(prefix), second.styles(prefix)

    def check(plan: Plan) -> tuple[Finding, ...]:
        findings = check_plan(model, plan, tp)
        if any(finding.severity is not Severity.WARNING for finding in findings):
            return findings
        return check_tensor(Subject(model, graph, prefix), plan.styles(prefix), tp)

    found = []
    for key in dict.fromkeys([*one, *two]):
        old, new = one.get(key), two.get(key)
        if old == new:
            continue
        backed, codes = _backed(
            check, second.edited(Edit(key, new, old), prefix), first.edited(Edit(key, old, new), prefix)
        )
        inside = bool(prefix) and key.startswith(f"{prefix}.")
        attribute = "base_model_tp_plan" if inside or not prefix else "_tp_plan"
        found.append(Difference(attribute, key.removeprefix(f"{prefix}.") if inside else key, old, new, backed, codes))
    return found


def _backed(
    check: Callable[[T], tuple[Finding, ...]], first_in_second: T, second_in_first: T
) -> tuple[Backed, tuple[str, ...]]:
    """Which entry the proof supports, by proving the two plans with one entry exchanged, and the codes of the first plan's
    entry.
    """
    findings = check(first_in_second)
    codes = tuple(dict.fromkeys(found.code for found in findings if found.severity is not Severity.WARNING))
    one, two = _verdict(findings), _verdict(check(second_in_first))
    match one, two:
        case Severity.WARNING, Severity.WARNING:
            return Backed.BOTH, codes
        case Severity.ERROR, Severity.WARNING:
            return Backed.SECOND, codes
        case Severity.WARNING, Severity.ERROR:
            return Backed.FIRST, codes
        case Severity.ERROR, Severity.ERROR:
            return Backed.TOGETHER, codes
        case _:
            return Backed.OPEN, codes


def _verdict(findings: tuple[Finding, ...]) -> Severity:
    """The worst severity; WARNING where there is neither an error nor an undecided finding."""
    severities = {finding.severity for finding in findings}
    return next((worst for worst in (Severity.ERROR, Severity.UNDECIDED) if worst in severities), Severity.WARNING)


def _pipeline(model: nn.Module, graph: Graph, first: Plan, second: Plan) -> list[Difference]:
    def check(plan: Plan) -> tuple[Finding, ...]:
        return check_pp(model, graph, plan)

    found = []
    for attribute, one, two in (
        ("base_model_pp_plan", first.pp, second.pp),
        ("_pp_plan", first.head_pp, second.head_pp),
    ):
        for key, old, new in _different(one, two):
            swapped = (
                _with(second, attribute, _swapped(two, key, old)),
                _with(first, attribute, _swapped(one, key, new)),
            )
            backed, codes = _backed(check, *swapped)
            found.append(Difference(attribute, key, _text(old), _text(new), backed, codes))
    return found


def _experts(graph: Graph, prefix: str, first: Plan, second: Plan, tp: int) -> list[Difference]:
    one: dict[str, str | None] = {entry.pattern: entry.style for entry in first.ep}
    two: dict[str, str | None] = {entry.pattern: entry.style for entry in second.ep}

    def check(entries: Mapping[str, str | None]) -> tuple[Finding, ...]:
        kept = tuple(TpEntry(key, style) for key, style in entries.items() if style is not None)
        return check_experts(graph, Plan(ep=kept), prefix, tp)

    # Experts up to Transformers 5.18 work by styles of which nothing is known here.
    decidable = not any(is_unmodelled(entry.style) for entry in (*first.ep, *second.ep))
    found = []
    for key in dict.fromkeys([*one, *two]):
        old, new = one.get(key), two.get(key)
        if old == new:
            continue
        # Any other style in an expert plan is the tensor-parallel one, which is not proved beside experts.
        known = decidable and {old, new} <= {DISPATCH, STACKED, None}
        backed, codes = _backed(check, two | {key: old}, one | {key: new}) if known else (Backed.OPEN, ())
        found.append(Difference("base_model_ep_plan", key, old, new, backed, codes))
    return found


def _different(one: tuple[PpEntry, ...], two: tuple[PpEntry, ...]) -> list[tuple[str, PpEntry | None, PpEntry | None]]:
    olds: Mapping[str, PpEntry] = {entry.module: entry for entry in one}
    news: Mapping[str, PpEntry] = {entry.module: entry for entry in two}
    pairs = ((key, olds.get(key), news.get(key)) for key in dict.fromkeys([*olds, *news]))
    return [(key, old, new) for key, old, new in pairs if old != new]


def _swapped(entries: tuple[PpEntry, ...], key: str, entry: PpEntry | None) -> tuple[PpEntry, ...]:
    """The entries with one replaced in its place, removed, or added at the end."""
    have = {other.module: other for other in entries}
    if entry is None:
        have.pop(key, None)
    else:
        have[key] = entry
    return tuple(have.values())


def _with(plan: Plan, attribute: str, entries: tuple[PpEntry, ...]) -> Plan:
    return replace(plan, pp=entries) if attribute == "base_model_pp_plan" else replace(plan, head_pp=entries)


def _text(entry: PpEntry | None) -> str | None:
    return f"{', '.join(entry.inputs)} -> {', '.join(entry.outputs)}" if entry else None
