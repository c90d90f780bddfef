"""An explanation of a plan as text and as JSON: groups of dims, what stays whole, code changes that would let more be sharded."""

from collections.abc import Iterable, Sequence

from shardproof.planner.ir.explanation import Explanation, Group, LeftWhole, Patch, Tie
from shardproof.planner.ir.readable_text import format_bytes

MOST_SHOWN = 8
"""Members and ops shown of one group; JSON has all of them."""


def explanation_text(explanation: Explanation) -> str:
    """Blocks separated by blank lines, largest first."""
    groups = [_group(group) for group in explanation.groups]
    left = ["left whole\n" + "\n".join(map(_left, explanation.left))] if explanation.left else []
    return "\n\n".join([*groups, *left, *map(_patch, explanation.patches)])


def _group(group: Group) -> str:
    state = "sharded" if group.sharded else "whole"
    why = f": {group.reason}" if group.reason else ""
    lines = [f"group of {group.size} parts, {state}{why}"]
    forbidden = "a style minds" if group.sharded else "forbidden by"
    for label, items in (("in", group.members), ("tied by", group.ties), (forbidden, group.forbids)):
        lines += _list(label, list(map(str, items)))
    return "\n".join(lines)


def _list(label: str, items: Sequence[str]) -> Iterable[str]:
    shown = [*items[:MOST_SHOWN], *([f"and {len(items) - MOST_SHOWN} more"] if len(items) > MOST_SHOWN else [])]
    return [f"  {label if number == 0 else '':<13} {item}" for number, item in enumerate(shown)]


def _left(left: LeftWhole) -> str:
    return f"  {left.pattern}: {format_bytes(left.bytes)}, {left.reason}"


def _patch(patch: Patch) -> str:
    tried = "; the proposal was followed through the changed code" if patch.tried else "; not tried"
    return f"patch for {', '.join(patch.unlocks)}{tried}\n  {patch.title}\n{patch.diff.rstrip()}"


def explanation_json(explanation: Explanation) -> dict[str, object]:
    """The keys `groups`, `left` and `patches`."""
    return {
        "groups": [
            {
                "size": group.size,
                "sharded": group.sharded,
                "reason": group.reason,
                "members": [
                    {"parameter": m.parameter, "dim": m.dim, "size": m.size, "blocks": m.blocks} for m in group.members
                ],
                "ties": list(map(_tie, group.ties)),
                "forbids": list(map(_tie, group.forbids)),
            }
            for group in explanation.groups
        ],
        "left": [
            {"pattern": left.pattern, "elements": left.elements, "bytes": left.bytes, "reason": left.reason}
            for left in explanation.left
        ],
        "patches": [
            {"title": patch.title, "unlocks": list(patch.unlocks), "diff": patch.diff, "tried": patch.tried}
            for patch in explanation.patches
        ],
    }


def _tie(tie: Tie) -> dict[str, object]:
    return {"op": tie.op, "module": tie.module, "source": tie.source or None, "why": tie.why}
