"""A plan as Python source to paste: attributes of the config classes and of the head class, each entry with its reason."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby
from textwrap import wrap

from shardproof.planner.ir.plan import Plan, PpEntry, TpEntry, owner_of
from shardproof.planner.ir.spelling import one_line, python_string
from shardproof.verify.report.formats.client_readings import right_in
from shardproof.verify.report.formats.text import share
from shardproof.verify.report.suggestion import Suggested

_WIDTH = 110


def suggestion_python(suggested: Suggested) -> str:
    """Assignments that run as they are; comments say which class each belongs in."""
    plan = suggested.plan
    owners = {"": suggested.config_class} | dict(suggested.owners)
    parts = [block for path, owner in owners.items() for block in _section(owner, _part(plan, path, owners))]
    head = [
        _mapping("_tp_plan", _tp_lines(plan.head_tp)),
        _mapping("_pp_plan", [line for entry in plan.head_pp for line in _pp_lines(entry)]),
    ]
    blocks = [_head(suggested), *parts, *_section(suggested.model_class, head)]
    return "\n\n".join(blocks)


def _part(plan: Plan, path: str, owners: Iterable[str]) -> list[str]:
    """The attributes of the config at this path of the base model; keys are relative to the path."""

    def mine(key: str) -> str | None:
        return key.removeprefix(f"{path}.") if owner_of(key, owners) == path else None

    tp, ep = (
        [replace(entry, pattern=key) for entry in entries if (key := mine(entry.pattern))]
        for entries in (plan.tp, plan.ep)
    )
    pp = [replace(entry, module=key) for entry in plan.pp if (key := mine(entry.module))]
    return [
        _mapping("base_model_tp_plan", _tp_lines(tp)),
        _mapping("base_model_pp_plan", [line for entry in pp for line in _pp_lines(entry)]),
        _mapping("base_model_ep_plan", _tp_lines(ep)),
    ]


def _head(suggested: Suggested) -> str:
    report, plan = suggested.report, suggested.plan
    degrees = suggested.degrees.listed()
    part = share(suggested.sharded_fraction)
    lines = [
        f"Plan of {suggested.model}: {report.verdict} at tp {suggested.tp}.",
        f"Legal tensor-parallel degrees: {degrees}. Share of parameter bytes sharded: {part}.",
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
    body = "\n".join(f"    {line}" for line in lines)
    return f"{name} = {{\n{body}\n}}" if lines else ""


def _tp_lines(entries: Iterable[TpEntry]) -> list[str]:
    """Entries in groups of one reason; the reason as a trailing comment where it fits, else on the lines before."""
    lines: list[str] = []
    for because, group in groupby(entries, key=lambda entry: one_line(entry.because)):
        texts = [f"{python_string(entry.pattern)}: {python_string(entry.style)}," for entry in group]
        short = len(texts) == 1 and len(texts[0]) + len(because) + 8 <= _WIDTH
        if not because:
            lines += texts
        elif short:
            lines.append(f"{texts[0]}  # {because}")
        else:
            lines += [*_comment([because]), *texts]
    return lines


def _pp_lines(entry: PpEntry) -> list[str]:
    return [f"{python_string(entry.module)}: ({_names(entry.inputs)}, {_names(entry.outputs)}),"]


def _names(names: tuple[str, ...]) -> str:
    return "[" + ", ".join(map(python_string, names)) + "]"


def _comment(lines: Iterable[str]) -> list[str]:
    return [f"# {part}" for line in lines for part in wrap(one_line(line), _WIDTH - 6, break_long_words=False)]
