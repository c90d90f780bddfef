"""The outcome as a table of totals and as a page."""

import re
from collections import Counter
from collections.abc import Sequence

import torch
from rich.table import Table

from benchmarks.versions.compare import Swept, answer, changes, own_answer, own_reason, reason
from benchmarks.zoo.rows import disagreements

_ANSWERS = ("confirmed", "proved", "refuted", "not proved", "no plan")
_STOPPED = "stopped"
_OWN = ("own plan right", "own plan refuted", "own plan not proved")


def totals(swept: Sequence[Swept]) -> Table:
    """One line a version."""
    table = Table("Transformers", "types", *_ANSWERS, _STOPPED, *_OWN, "proof and run disagree", "other answer or plan")
    for cells in _lines(swept):
        table.add_row(*cells)
    return table


def _lines(swept: Sequence[Swept]) -> list[list[str]]:
    lines = []
    for one in swept:
        counted = Counter(answer(row) for row in one.rows.values())
        stopped = sum(number for label, number in counted.items() if label.startswith(_STOPPED))
        own = Counter(own_answer(row) for row in one.rows.values())
        owns = (own["proved"] + own["confirmed"], own["refuted"], own["not proved"])
        measured = f"{len(one.rows)} of {len(one.facts.sources)}"
        cells = [
            one.facts.version,
            measured,
            *(str(counted[label]) for label in _ANSWERS),
            str(stopped),
            *map(str, owns),
        ]
        differ = "" if one is swept[0] else str(len(changes(swept[0], one)))
        lines.append([*cells, str(len(disagreements(one.rows.values()))), differ])
    return lines


def page(swept: Sequence[Swept]) -> str:
    """The page: totals, and for each version what is new and what has another answer than in the first."""
    first = swept[0]
    head = [
        "# Versions of Transformers",
        "",
        "Causal-LM types on several versions of Transformers, by one installation of shardproof: the plan that",
        "`plan suggest` infers and the one that the type carries, their proofs at the smallest degree asked, and where it",
        "says `confirmed` the run on ranks as threads too. *types* says how many of a version's types were measured.",
        f"torch {torch.__version__.partition('+')[0]}. Written by `python -m benchmarks versions --page FILE`.",
        "",
        f"| Transformers | types | {' | '.join(_ANSWERS)} | {_STOPPED} | {' | '.join(_OWN)} | proof and run disagree "
        f"| unlike {first.facts.version} |",
        "|" + "---|" * (len(_ANSWERS) + len(_OWN) + 5),
        *(f"| {' | '.join(cells)} |" for cells in _lines(swept)),
        "",
        "*stopped*: the type could not be built or traced; the reason is below. *unlike*: the answer or the suggested plan is",
        f"another one than with {first.facts.version}, of the types measured with both.",
        "",
        f"## Without a right plan on {first.facts.version}",
        "",
        *(_reasons(first, list(first.rows)) or ["None of those measured."]),
        "",
        "## Own plans that are not right",
        "",
        "| type | own plan | with | finding |",
        "|---|---|---|---|",
        *_own_faults(swept),
    ]
    for one in swept[1:]:
        head += ["", *_section(first, one)]
    return "\n".join(head) + "\n"


def _own_faults(swept: Sequence[Swept]) -> list[str]:
    """One line for each type, answer and finding, with the versions that have it."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for one in swept:
        for name, row in one.rows.items():
            if (said := own_answer(row)) in ("refuted", "not proved"):
                # Lines of the source move between versions.
                told = re.sub(r", transformers/\S+:\d+", "", own_reason(row))
                found.setdefault((name, said, told), []).append(one.facts.version)
    return [
        f"| {name} | {said} | {', '.join(versions)} | {_cell(told)} |"
        for (name, said, told), versions in sorted(found.items())
    ]


def _section(first: Swept, one: Swept) -> list[str]:
    lines = [f"## {one.facts.version} against {first.facts.version}", ""]
    styles = {"registered in addition": one.facts.styles, "not registered": first.facts.styles}
    others = (first.facts.styles, one.facts.styles)
    for (label, have), other in zip(styles.items(), others, strict=True):
        if missing := [f"`{style}`" for style in have if style not in other]:
            lines += [f"Styles {label}: {', '.join(missing)}.", ""]
    both = first.facts.sources.keys() & one.facts.sources.keys()
    rewritten = sum(first.facts.sources[name] != one.facts.sources[name] for name in both)
    lines += [f"{len(both)} types in both; of {rewritten} the source of the type is another one.", ""]
    alone = sorted(one.rows.keys() - first.rows.keys())
    if new := [name for name in alone if name not in first.facts.sources]:
        told = ", ".join(f"{name} ({answer(one.rows[name])})" for name in new)
        lines += [f"Types that {first.facts.version} lacks: {told}.", ""]
    lines += _reasons(one, alone)
    if found := changes(first, one):
        lines += [
            "",
            f"| type | {first.facts.version} | {one.facts.version} | its source | what differs |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {change.name} | {change.before} | {change.after} | {'changed' if change.its_code else 'the same'} "
            f"| {_cell(change.reason)} |"
            for change in found
        ]
    else:
        lines += ["No type has another answer or plan."]
    return lines


def _reasons(one: Swept, names: Sequence[str]) -> list[str]:
    return [
        f"- {name}: {answer(one.rows[name])}. {_cell(reason(one.rows[name]))}"
        for name in sorted(names)
        if answer(one.rows[name]) not in ("confirmed", "proved")
    ]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")[:300]
