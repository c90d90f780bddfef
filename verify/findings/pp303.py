"""PP303: a value that a later stage needs and does not get."""

from shardproof.planner.ir.findings import Severity
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
