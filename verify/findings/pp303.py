"""PP303: a value that a later stage needs and does not get."""

from collections.abc import Sequence

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="PP303",
        name="value-not-passed",
        severity=Severity.ERROR,
        what="A module reads a value that is made on an earlier stage, and its entry does not name it as an input.",
        why="Across a cut only named values travel. The later stage raises, or makes the value anew from "
        "what it has: another mask, other positions, the embedding scale applied again.",
        use_instead="The name of the value among the inputs of the entry that reads it.",
        fix_safety="No edit is offered: `plan suggest MODEL` names all that is live across each cut.",
        invalid=(
            Example(
                note="The layers take a mask, which is made before them.",
                code='"layers": (["hidden_states"], ["hidden_states"]),',
            ),
        ),
        valid=(
            Example(
                note="The mask is named.",
                code='"layers": (["hidden_states", "attention_mask"], ["hidden_states"]),',
            ),
        ),
    )
)


def unknown_name(path: str, caller: str, names: Sequence[str]) -> Finding:
    """A key lists names that are not in the code of the class that calls its module."""
    return Finding(
        "PP303",
        Severity.WARNING,
        f'"{path}" lists "{names[0]}", a name that {caller}, which calls it, does not use',
        Place(entry=path, module=path),
        why="a key lists its inputs and outputs as the modeling code calls them",
        found=", ".join(names),
        needed="names of the modeling code",
    )


def empty_list(path: str, which: str) -> Finding:
    """A key lists no inputs, or no outputs (`which`), though the hidden states run through its module."""
    return Finding(
        "PP303",
        Severity.ERROR,
        f'"{path}" lists no {which}, and the hidden states run through it',
        Place(entry=path, module=path),
        why="what a key does not list is not passed between stages",
        found="an empty list",
        needed="the name of the hidden states",
    )


def cannot_be_cut(stack: str, layers: str, place: Place, *, because: str, found: str) -> Finding:
    """No stage can begin at these layers of the list `stack`: an op behind them reads what cannot be sent."""
    return Finding(
        "PP303",
        Severity.ERROR,
        f'"{stack}" cannot be cut before layer {layers}: {because}',
        place,
        why="it needs weights of an earlier stage, and no argument of a layer can bring what they give",
        found=found,
        needed="what enters the layers as an argument",
        fault=Fault.MODEL,
    )


def input_not_listed(stack: str, name: str, place: Place, inputs: Sequence[str]) -> Finding:
    """The key of the list `stack` lists `inputs`, but not `name`, which its layers get from the first stage."""
    return Finding(
        "PP303",
        Severity.ERROR,
        f'"{stack}" does not list "{name}", which its layers get from {place.module}, on the first stage only',
        place,
        why="what derives from weights of an earlier stage cannot be made anew behind a cut",
        found=", ".join(inputs) or "nothing",
        needed=", ".join((*inputs, name)),
    )
