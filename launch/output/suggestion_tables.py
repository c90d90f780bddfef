"""Tables on stderr about a suggested plan: its entries, what stays whole, and the reasons."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from shardproof.planner.ir.spelling import one_line, visible
from shardproof.verify.report.difference import Backed, Difference
from shardproof.verify.report.formats.client_readings import everywhere_lines
from shardproof.verify.report.formats.explanation import explanation_text
from shardproof.verify.report.formats.text import finding_text, share, verdict_sentence
from shardproof.verify.report.suggestion import Suggested


def show_suggestion(suggested: Suggested, *, why: bool = False) -> None:
    """The entries (with reasons if asked), what was left whole and why, the notes, and the verdict."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        console.width = 120
    plan = suggested.plan
    entries = [(entry.pattern, entry.style, entry.because) for entry in (*plan.tp, *plan.head_tp)]
    if entries:
        console.print(_table(("entry", "style", *(["because"] if why else [])), entries))
    if suggested.explanation is not None:
        _print(console, explanation_text(suggested.explanation) + "\n")
    elif plan.unplanned:
        console.print(_table(("left whole", "because"), list(plan.unplanned.items())))
    if suggested.differences is not None:
        _show_differences(console, suggested.differences)
    for note in suggested.notes:
        console.print(f"note: {one_line(note)}", markup=False)
    if suggested.everywhere is not None:
        _print(console, "\n".join(everywhere_lines(suggested.everywhere)) + "\n")
    for finding in suggested.report.findings:
        _print(console, finding_text(finding) + "\n")
    _print(console, _last_line(suggested))


def _print(console: Console, text: str) -> None:
    console.print(visible(text), markup=False, soft_wrap=True)


def _show_differences(console: Console, differences: Sequence[Difference]) -> None:
    if not differences:
        console.print("The model's own plan has no entry that differs.")
        return
    rows = [
        (f"{found.attribute}\n  {found.key}", found.first or "-", found.second or "-", _backed(found))
        for found in differences
    ]
    console.print(_table(("entry", "the model's own", "suggested", "what the proof backs"), rows))


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


def _last_line(suggested: Suggested) -> str:
    verdict = suggested.report.verdict
    how = f"{verdict.value} at tp {suggested.tp} ({verdict_sentence(verdict)})"
    part = share(suggested.sharded_fraction)
    return f"{suggested.model}: {how}; {part} of the bytes sharded; degrees {'; '.join(suggested.degrees.clauses())}."


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=number == 0)
    for row in rows:
        table.add_row(*(escape(visible(cell)) for cell in row[: len(columns)]))
    return table
