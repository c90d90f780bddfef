"""What changed between two versions of Transformers: styles, types, sources, plans and verdicts."""

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.versions.facts import Facts
from benchmarks.zoo.rows import Judged, Row


@dataclass(frozen=True, slots=True)
class Swept:
    """One version: what it says, and what was measured of its types."""

    facts: Facts
    rows: Mapping[str, Row]


@dataclass(frozen=True, slots=True)
class Change:
    """One type whose answer is another one. `its_code` says whether the type's own source differs as well."""

    name: str
    before: str
    after: str
    its_code: bool
    reason: str


def answer(row: Row) -> str:
    """What a user is told of one type: the verdict of the suggested plan, `no plan`, or how far the measuring came."""
    if row.mine is None or row.stage in ("crash", "load", "build"):
        return f"stopped in {row.stage}"
    verdicts = [*row.mine.proof.values(), *row.mine.run.values()]
    if row.mine.fraction == 0:
        return "no plan"
    if "refuted" in verdicts:
        return "refuted"
    if not verdicts or "not proved" in verdicts:
        return "not proved"
    return "confirmed" if row.mine.run else "proved"


def reason(row: Row) -> str:
    """Why a type has no better answer: the reason of the measuring, or the first finding."""
    told = list(row.mine.findings.values()) if row.mine else []
    return row.reason or (told[0] if told else "")


def own_answer(row: Row) -> str:
    """What is said of the plan that a type carries; empty where it carries none, or was not judged."""
    verdicts = [*row.upstream.proof.values(), *row.upstream.run.values()] if row.upstream else []
    return next((verdict for verdict in ("refuted", "not proved", "confirmed", "proved") if verdict in verdicts), "")


def own_reason(row: Row) -> str:
    """Why the plan that a type carries is not right: its first finding."""
    return next(iter(row.upstream.findings.values()), "") if row.upstream else ""


def changes(before: Swept, after: Swept) -> list[Change]:
    """The types of both versions whose verdict, plan or share is another one."""
    found = []
    for name in sorted(before.rows.keys() & after.rows.keys()):
        old, new = before.rows[name], after.rows[name]
        was, now = answer(old), answer(new)
        why = reason(new) if was != now else "" if _same_plan(old.mine, new.mine) else _plan_change(old.mine, new.mine)
        if was != now or why:
            code = before.facts.sources.get(name) != after.facts.sources.get(name)
            found.append(Change(name, was, now, code, why))
    return found


def _same_plan(old: Judged | None, new: Judged | None) -> bool:
    return (old is None and new is None) or (old is not None and new is not None and old.plan == new.plan)


def _plan_change(old: Judged | None, new: Judged | None) -> str:
    """The entries that went, came or have another style, and the share before and after."""
    entries = [_entries(judged) for judged in (old, new)]
    told = [
        f"{key}: {entries[0].get(key, 'no entry')} -> {entries[1].get(key, 'no entry')}"
        for key in sorted(entries[0].keys() | entries[1].keys())
        if entries[0].get(key) != entries[1].get(key)
    ]
    shares = [f"{judged.fraction:.1%}" if judged else "none" for judged in (old, new)]
    moved = "" if shares[0] == shares[1] else f"; share {shares[0]} -> {shares[1]}"
    return "; ".join(told[:4]) + (f"; {len(told) - 4} more" if len(told) > 4 else "") + moved


def _entries(judged: Judged | None) -> dict[str, str]:
    """Every entry of every plan of a row, by plan and pattern."""
    return {
        f"{plan} {pattern}": str(style)
        for plan, entries in (judged.plan if judged else {}).items()
        if isinstance(entries, dict)
        for pattern, style in entries.items()
    }
