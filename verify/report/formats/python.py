"""A plan as Python source to paste: attributes of the config classes and of the head class, each entry with its reason."""

from collections.abc import Iterable
from dataclasses import replace
from enum import StrEnum
from itertools import groupby
from textwrap import wrap

from shardproof.planner.ir.plan import Plan, PpEntry, TpEntry, owner_of
from shardproof.planner.ir.readable_text import one_line, python_string
from shardproof.verify.report.formats.client_readings import right_in
from shardproof.verify.report.formats.text import share
from shardproof.verify.report.suggestion import Suggested

_WIDTH = 110
_LINE = 99
"""Columns of a line that a terminal of 100 columns shows whole."""
_BRIEF = 60
"""Characters of a whole reason that is short enough to stand for a brief one."""


class Comments(StrEnum):
    """How much of the reasons stands beside the entries."""

    NONE = "none"
    SHORT = "short"
    """A few words, without line numbers, which would soon be wrong."""
    FULL = "full"


def suggestion_python(suggested: Suggested, *, comments: Comments = Comments.SHORT, head: bool = True) -> str:
    """Assignments that run as they are; comments say which class each belongs in, and with `head` what was proved of them."""
    blocks = [_head(suggested)] if head or not (suggested.plan.tp or suggested.plan.head_tp) else []
    return "\n\n".join([*blocks, *_classes(suggested, comments)])


def _classes(suggested: Suggested, comments: Comments) -> list[str]:
    plan = suggested.plan
    if not suggested.config_class:
        tp = _tp_lines((*plan.tp, *plan.head_tp), comments)
        pp = [line for entry in (*plan.pp, *plan.head_pp) for line in _pp_lines(entry)]
        return list(filter(None, [_mapping("tp_plan", tp), _mapping("pp_plan", pp)]))
    owners = {"": suggested.config_class} | dict(suggested.owners)
    parts = [block for path, owner in owners.items() for block in _section(owner, _part(plan, path, owners, comments))]
    mappings = [
        _mapping("_tp_plan", _tp_lines(plan.head_tp, comments)),
        _mapping("_pp_plan", [line for entry in plan.head_pp for line in _pp_lines(entry)]),
    ]
    return [*parts, *_section(suggested.model_class, mappings)]


def _part(plan: Plan, path: str, owners: Iterable[str], comments: Comments) -> list[str]:
    """The attributes of the config at this path of the base model; keys are relative to the path."""

    def mine(key: str) -> str | None:
        return key.removeprefix(f"{path}.") if owner_of(key, owners) == path else None

    tp, ep = (
        [replace(entry, pattern=key) for entry in entries if (key := mine(entry.pattern))]
        for entries in (plan.tp, plan.ep)
    )
    pp = [replace(entry, module=key) for entry in plan.pp if (key := mine(entry.module))]
    return [
        _mapping("base_model_tp_plan", _tp_lines(tp, comments)),
        _mapping("base_model_pp_plan", [line for entry in pp for line in _pp_lines(entry)]),
        _mapping("base_model_ep_plan", _tp_lines(ep, comments)),
    ]


def _head(suggested: Suggested) -> str:
    report, plan = suggested.report, suggested.plan
    part = share(suggested.sharded_fraction)
    lines = [
        f"Plan of {suggested.model}: {report.verdict} at tp {suggested.tp}.",
        f"Share of parameter bytes sharded: {part}. Degrees: {suggested.degrees.powers()}.",
    ]
    if report.shares is not None:
        lines += [
            line for line in (f"Split at tp {suggested.tp}: {report.shares.sentence}.", report.shares.warning) if line
        ]
    if suggested.everywhere is not None:
        lines.append(right_in(suggested.everywhere))
    if not (plan.tp or plan.head_tp):
        lines.append("No tensor-parallel entry was found to be right for this model.")
    return "\n".join(_comment(lines))


def _section(owner: str, mappings: Iterable[str]) -> list[str]:
    filled = [text for text in mappings if text]
    return [f"# In class {one_line(owner)}:\n" + "\n".join(filled)] if filled else []


def _mapping(name: str, lines: list[str]) -> str:
    """An assignment; an entry that is alone, and has no comment, stands on the line of its name."""
    if len(lines) == 1 and lines[0].endswith(",") and len(name) + len(lines[0]) + 5 <= _LINE:
        return f"{name} = {{{lines[0].removesuffix(',')}}}"
    body = "\n".join(f"    {line}" for line in lines)
    return f"{name} = {{\n{body}\n}}" if lines else ""


def _tp_lines(entries: Iterable[TpEntry], comments: Comments) -> list[str]:
    """Entries in groups of one reason; the reason as a trailing comment where it fits, else on the lines before."""
    if comments is not Comments.FULL:
        return [_line(entry, _brief(entry) if comments is Comments.SHORT else "") for entry in entries]
    lines: list[str] = []
    for because, group in groupby(entries, key=lambda entry: one_line(entry.because)):
        texts = [_line(entry) for entry in group]
        short = len(texts) == 1 and len(texts[0]) + len(because) + 8 <= _WIDTH
        if not because:
            lines += texts
        elif short:
            lines.append(f"{texts[0]}  # {because}")
        else:
            lines += [*_comment([because]), *texts]
    return lines


def _line(entry: TpEntry, comment: str = "") -> str:
    text = f"{python_string(entry.pattern)}: {python_string(entry.style)},"
    return f"{text}  # {comment}" if comment and len(text) + len(comment) + 8 <= _LINE else text


def _brief(entry: TpEntry) -> str:
    """The reason in a few words; of a reason that was given in full only, nothing where it is long or names a line."""
    if entry.brief:
        return one_line(entry.brief)
    because = one_line(entry.because)
    return because if len(because) <= _BRIEF and ".py:" not in because else ""


def _pp_lines(entry: PpEntry) -> list[str]:
    return [f"{python_string(entry.module)}: ({_names(entry.inputs)}, {_names(entry.outputs)}),"]


def _names(names: tuple[str, ...]) -> str:
    return "[" + ", ".join(map(python_string, names)) + "]"


def _comment(lines: Iterable[str]) -> list[str]:
    return [f"# {part}" for line in lines for part in wrap(one_line(line), _WIDTH - 6, break_long_words=False)]
