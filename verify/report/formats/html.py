"""A report as one self-contained HTML file: no script, no font, no picture from anywhere else."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape

from shardproof.planner.ir.explanation import Explanation, Group
from shardproof.planner.ir.findings import Finding, Source
from shardproof.verify.report.drawing import Box, Picture
from shardproof.verify.report.formats.private import told
from shardproof.verify.report.formats.text import next_edit, verdict_sentence
from shardproof.verify.report.report import Report

Excerpt = Callable[[Source], Sequence[tuple[int, str]]]

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --page: #fff; --line: #d5dbe3; --soft: #f4f6f9;
  --shard: #2f7ed8; --packed: #7a52c7; --whole: #8b95a3; --good: #1d8a4e; --bad: #c9302c; --open: #b7791f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --page: #14181e; --line: #343b46; --soft: #1d232b; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 70rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; border-bottom: 1px solid var(--line); }
code, pre, .tree { font: 13px/1.5 ui-monospace, monospace; }
.verdict { color: #fff; padding: .15rem .6rem; border-radius: 1rem; font-size: 1rem; }
.proved, .confirmed { background: var(--good); } .refuted { background: var(--bad); } .not { background: var(--open); }
table { border-collapse: collapse; } td, th { text-align: left; padding: .2rem .8rem .2rem 0; vertical-align: top; }
details details { margin-left: 1.2rem; } summary, .leaf { padding: .05rem .3rem; border-radius: .2rem; }
.leaf { margin-left: 2.2rem; }
.mark { display: inline-block; width: .75rem; height: .75rem; border-radius: .15rem; margin-right: .4rem; vertical-align: -1px; }
.shard { background: var(--shard); } .packed { background: var(--packed); } .whole { background: var(--whole); }
.style { color: var(--shard); } .does { color: var(--open); } .size { opacity: .65; }
.bar { background: var(--soft); margin: .25rem 0; } .bar div { box-sizing: border-box; background: var(--shard);
  color: #fff; padding: .15rem .5rem;
  white-space: nowrap; min-width: max-content; }
.stacked { display: flex; height: 1.1rem; background: var(--soft); } .under { margin: 0 0 .5rem; }
.open { background: var(--open); }
.finding { border: 1px solid var(--line); border-left: 4px solid var(--bad); padding: .5rem 1rem; margin: 1rem 0; }
.finding.undecided { border-left-color: var(--open); } .finding.warning { border-left-color: var(--whole); }
pre { background: var(--soft); padding: .5rem; overflow-x: auto; } pre b { color: var(--bad); }
"""


def report_html(
    report: Report,
    drawn: Picture | None,
    *,
    layout: str,
    excerpt: Excerpt,
    explanation: Explanation | None = None,
    plan: str = "",
) -> str:
    """The whole page. `excerpt` gives the numbered lines around a source line; `explanation` has the groups; `plan` is shown
    as it is. Nothing is `drawn` of a model whose forward is not known.
    """
    verdict = report.verdict
    parts = [
        f"<h1>{escape(report.model)} at {escape(layout)} "
        f'<span class="verdict {verdict.value.split()[0]}">{verdict.value}</span></h1>',
        f"<p>{escape(verdict_sentence(verdict))}.</p>",
        _levels(report),
        found(report.findings, excerpt),
        *(["<h2>Stages</h2>", _stages(drawn)] if drawn else []),
        *(["<h2>Groups</h2>", *map(_group, explanation.groups)] if explanation else []),
        *(["<h2>Modules</h2>", _legend(drawn), f'<div class="tree">{_tree(drawn.boxes)}</div>'] if drawn else []),
        *([f"<h2>Plan</h2><pre>{escape(plan)}</pre>"] if plan else []),
        versions(report),
    ]
    return page(f"{report.model}: {verdict.value}", parts)


def page(title: str, parts: Iterable[str]) -> str:
    """A whole file of these parts, which are markup; the title is text."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>"
    )


def found(findings: Sequence[Finding], excerpt: Excerpt) -> str:
    """The section of findings, each with its source lines."""
    return "\n".join(["<h2>Findings</h2>", *([_finding(one, excerpt) for one in findings] or ["<p>None.</p>"])])


def versions(report: Report) -> str:
    """The section of what the result was found with."""
    return "<h2>Environment</h2>\n" + table(report.environment.items())


def _levels(report: Report) -> str:
    return table((level.level, level.verdict.value, f"{level.seconds:.1f} s") for level in report.levels)


def table(rows: Iterable[Sequence[str]], *, head: Sequence[str] = ()) -> str:
    """A table of texts."""
    cells = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    named = ["".join(f"<th>{escape(cell)}</th>" for cell in head)] if head else []
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in [*named, *cells]) + "</table>"


def _finding(finding: Finding, excerpt: Excerpt) -> str:
    finding = told(finding)
    rows = [
        ("where", str(finding.place)),
        ("why", finding.why),
        ("found", finding.found),
        ("needed", finding.needed),
        ("next", next_edit(finding)),
    ]
    source = finding.place.source
    lines = excerpt(source) if source else ()
    shown = "\n".join(_line(number, text, source.line if source else 0) for number, text in lines)
    return (
        f'<div class="finding {finding.severity.value}"><b>{escape(finding.code)}</b> {escape(finding.message)}'
        f"{table(row for row in rows if row[1])}{f'<pre>{shown}</pre>' if shown else ''}</div>"
    )


def _line(number: int, text: str, marked: int) -> str:
    line = f"{number:>5}  {escape(text)}"
    return f"<b>{line}</b>" if number == marked else line


def _stages(drawn: Picture) -> str:
    most = max((stage.size for stage in drawn.stages), default=0) or 1
    bars = []
    for number, stage in enumerate(drawn.stages):
        beside = f" with {', '.join(stage.beside)}" if stage.beside else ""
        text = f"stage {number}: {stage.layers}{beside}, {size(stage.size)} a rank"
        text = text if drawn.pp > 1 else f"one stage: {size(stage.size)} a rank"
        bars.append(f'<div class="bar"><div style="width:{100 * stage.size / most:.1f}%">{escape(text)}</div></div>')
    note = (
        "<p>Bytes of parameters on one rank, in stages cut so that the fullest holds the fewest.</p>"
        if drawn.pp > 1
        else ""
    )
    return note + "".join(bars)


def _group(group: Group) -> str:
    """Dims that must be split together: folded, with the parameters, the ops that tie them, and what forbids a split."""
    state = "can be split" if group.sharded else f"stays whole{f': {group.reason}' if group.reason else ''}"
    rows = [
        ("in", group.members),
        ("tied by", group.ties),
        ("minded by a style" if group.sharded else "forbidden by", group.forbids),
    ]
    cells = (
        f"<tr><td>{name}</td><td>{'<br>'.join(escape(str(one)) for one in items)}</td></tr>"
        for name, items in rows
        if items
    )
    mark = f'<span class="mark {"shard" if group.sharded else "whole"}"></span>'
    head = f"{mark}{group.size:,} parts in {_counted(len(group.members), 'parameter')}; {escape(state)}"
    return f'<details class="tree"><summary>{head}</summary><table>{"".join(cells)}</table></details>'


def _counted(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _legend(drawn: Picture) -> str:
    marks = (("shard", f"split over {drawn.tp} ranks"), ("packed", "split in packed blocks"), ("whole", "whole"))
    return "<p>" + " ".join(f'<span class="mark {name}"></span>{text}' for name, text in marks) + "</p>"


def _tree(boxes: Sequence[Box]) -> str:
    """Nested; layers that repeat another are only counted."""
    children: dict[str, list[Box]] = {}
    for box in boxes:
        if box.path:
            children.setdefault(box.path.rpartition(".")[0], []).append(box)
    alike: dict[str, int] = {}
    for box in boxes:
        if box.repeats is not None:
            alike[box.repeats] = alike.get(box.repeats, 0) + 1
    return "".join(_node(box, children, alike) for box in children.get("", ()) if box.repeats is None)


def _node(box: Box, children: Mapping[str, Sequence[Box]], alike: Mapping[str, int]) -> str:
    below = [child for child in children.get(box.path, ()) if child.repeats is None]
    times = f" and {alike[box.path]} more alike" if box.path in alike else ""
    label = f"{_mark(box)}{escape(box.path.rpartition('.')[2])}{times} <span class='size'>{escape(box.kind)}</span>{_about(box)}"
    if not below:
        return f'<div class="leaf">{label}</div>'
    return (
        f"<details open><summary>{label}</summary>{''.join(_node(child, children, alike) for child in below)}</details>"
    )


def _mark(box: Box) -> str:
    if not box.placements:
        return ""
    texts = [placement for _, placement in box.placements]
    kind = (
        "packed" if any("/" in text for text in texts) else "shard" if any("S(" in text for text in texts) else "whole"
    )
    return f'<span class="mark {kind}"></span>'


def _about(box: Box) -> str:
    style = f' <span class="style">{escape(box.style)}</span>' if box.style else ""
    placed = ", ".join(f"{name} {placement}" for name, placement in box.placements)
    sizes = f"{size(box.whole)}, {size(box.local)} a rank" if box.local != box.whole else size(box.whole)
    held = f' <span class="size">{escape(placed)}; {sizes}</span>' if box.placements else ""
    does = f' <span class="does">{escape("; ".join(box.collectives))}</span>' if box.collectives else ""
    return style + held + does


def size(count: float) -> str:
    """Bytes in binary units: `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
