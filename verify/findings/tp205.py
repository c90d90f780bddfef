"""TP205: a sum that is taken twice."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="TP205",
        name="reduced-twice",
        severity=Severity.ERROR,
        what="A value that every rank has whole already is all-reduced once more.",
        why="The sum of t equal values x is t x: the output is the degree times too large, with no error.",
        use_instead="One reduction: `rowwise` on the last linear layer, and no `all_reduce` on the block around it.",
        fix_safety="The edit that removes the second reduction is offered where it was proved.",
        invalid=(
            Example(
                note="down_proj is rowwise, and so reduced, when all_reduce sees it.",
                model="llama",
                plan=(("model.layers.*.mlp", "all_reduce"),),
            ),
        ),
        valid=(Example(note="One reduction.", model="llama"),),
    )
)
