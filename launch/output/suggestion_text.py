"""A suggested plan for a reader: one table of its entries, the verdict, the legal degrees, and what stays whole."""

from collections.abc import Iterable, Sequence
from textwrap import wrap

from shardproof.planner.ir.explanation import LeftWhole
from shardproof.planner.ir.findings import Verdict
from shardproof.planner.ir.plan import Plan, TpEntry
from shardproof.planner.ir.readable_text import one_line
from shardproof.verify.report.client_readings import Everywhere
from shardproof.verify.report.difference import Backed, Difference
from shardproof.verify.report.formats.client_readings import everywhere_lines, right_in
from shardproof.verify.report.formats.explanation import explanation_text
from shardproof.verify.report.formats.text import finding_text, share, verdict_sentence
from shardproof.verify.report.suggestion import Suggested

WORTH = 0.01
"""The share of the parameter bytes from which a module that stays whole is worth a line."""
_MOST_WHOLE = 4
"""Lines about modules that stay whole; `--why` shows all of them."""
_LABEL = 9


def suggestion_text(suggested: Suggested, *, width: int, why: bool = False, python: str = "") -> str:
    """The suggestion in lines of at most `width` columns (lines of a finding may be longer).

    With `why` also the whole reasons, the groups of dims, all that stays whole and what each client makes of the plan.
    `python` is the plan as Python source, which comes last.
    """
    told = [*_about(suggested, why=why)]
    labelled = [line for label, text in told for line in _labelled(label, text, width)]
    blocks = [
        f"{one_line(suggested.model)}: {_verdict(suggested)}\n" + "\n".join(labelled),
        columns(("entry", "style", "why"), _entries(suggested.plan, why=why), width),
        _explained(suggested, width) if why else "",
        "" if suggested.differences is None else _differences(suggested.differences, width),
        *map(finding_text, suggested.report.findings),
        python,
    ]
    return "\n\n".join(filter(None, blocks))


def _verdict(suggested: Suggested) -> str:
    verdict = suggested.report.verdict
    part = share(suggested.sharded_fraction)
    meaning = "" if verdict is Verdict.PROVED else f" ({verdict_sentence(verdict)})"
    return f"{verdict.value} at tp {suggested.tp}{meaning}; {part} of the parameter bytes sharded"


def _about(suggested: Suggested, *, why: bool) -> Iterable[tuple[str, str]]:
    """Labels and sentences under the verdict."""
    degrees, shares = suggested.degrees, suggested.report.shares
    if shares is not None:
        if shares.warning:
            yield "warning", f"{shares.warning} {'' if why else '--why says what stands in the way.'}".strip()
        yield "split", shares.sentence
    if why:
        yield from _once("degrees", degrees.clauses())
    else:
        yield "degrees", degrees.powers()
    if suggested.everywhere is not None:
        yield from _once("clients", _clients(suggested.everywhere, why=why))
    if not why:
        yield from _once("whole", _whole(suggested.left))
    yield from _once("note", suggested.notes)


def _once(label: str, texts: Iterable[str]) -> Iterable[tuple[str, str]]:
    """The label before the first text alone."""
    for number, text in enumerate(texts):
        yield ("" if number else label), text


def _clients(found: Everywhere, *, why: bool) -> Sequence[str]:
    if why:
        return everywhere_lines(found)
    return (
        [right_in(found)]
        if found.one
        else [f"{right_in(found)} --why says what is lost there, and how to get it back."]
    )


def _whole(left: Sequence[LeftWhole]) -> Iterable[str]:
    worth = sorted((one for one in left if one.share >= WORTH), key=lambda one: -one.share)
    for one in worth[:_MOST_WHOLE]:
        yield f"{one.pattern} ({share(one.share)} of the bytes): {one.reason}"
    if len(worth) > _MOST_WHOLE:
        yield f"and {len(worth) - _MOST_WHOLE} more; --why shows all"


def _entries(plan: Plan, *, why: bool) -> list[tuple[str, str, str]]:
    return [(entry.pattern, entry.style, _reason(entry, why=why)) for entry in (*plan.tp, *plan.head_tp, *plan.ep)]


def _reason(entry: TpEntry, *, why: bool) -> str:
    return entry.because if why or not entry.brief else entry.brief


def _explained(suggested: Suggested, width: int) -> str:
    if suggested.explanation is not None:
        return explanation_text(suggested.explanation)
    return columns(("left whole", "why"), list(suggested.plan.unplanned.items()), width)


def _differences(differences: Sequence[Difference], width: int) -> str:
    if not differences:
        return "The model's own plan has no entry that differs."
    rows = [
        (f"{found.attribute} {found.key}", found.first or "-", found.second or "-", _backed(found))
        for found in differences
    ]
    return columns(("entry", "the model's own", "suggested", "what the proof backs"), rows, width)


def _backed(found: Difference) -> str:
    """The verdict on one difference; `by` are the findings on the model's own entry among the suggested ones."""
    by = f" (by {', '.join(found.codes)})" if found.codes else ""
    match found.backed:
        case Backed.BOTH:
            return "both"
        case Backed.FIRST:
            return "the model's own"
        case Backed.SECOND:
            return f"suggested; the model's own is refuted{by}"
        case Backed.TOGETHER:
            return f"either, but only among its own plan's entries{by}"
        case Backed.OPEN:
            return f"not decided{by}"


def columns(heads: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> str:
    """A table; its last column is wrapped where a row is longer than `width`. Empty without rows."""
    if not rows:
        return ""
    cells = [[one_line(cell) for cell in row] for row in (heads, *rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(heads) - 1)]
    room = max(width - sum(widths) - 2 * len(widths), 20)
    lines = [line for row in cells for line in _row(row, widths, room)]
    rule = min(max(map(len, lines)), max(width, 1))
    return "\n".join([lines[0], "-" * rule, *lines[1:]])


def _row(row: Sequence[str], widths: Sequence[int], room: int) -> Iterable[str]:
    first = "".join(cell.ljust(width) + "  " for cell, width in zip(row, widths, strict=False))
    for number, part in enumerate(wrap(row[-1], room, break_on_hyphens=False) or [""]):
        yield ((" " * len(first) if number else first) + part).rstrip()


def _labelled(label: str, text: str, width: int) -> list[str]:
    lead = " " * (2 + len(text) - len(text.lstrip()))
    return wrap(
        one_line(text),
        max(width, 40),
        initial_indent=f"  {label:<{_LABEL - 2}}{lead}",
        subsequent_indent=" " * (_LABEL + 2),
        break_on_hyphens=False,
        break_long_words=False,
    )
