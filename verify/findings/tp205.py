"""TP205: a sum that is taken twice."""

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
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


def bias_on_every_rank(client: str, module: str, cite: str) -> Finding:
    """The client sums the outputs of a layer over the ranks, after each rank has added the whole bias to its own."""
    return Finding(
        "TP205",
        Severity.ERROR,
        f"{client} sums the output of {module} over the ranks after every rank has added its whole bias.",
        Place(module=module),
        why=f"the bias stays whole, and the layer's own forward adds it before the sum ({cite})",
        found="the bias times the number of ranks",
        needed="a layer without a bias, or one that stays whole",
        fault=Fault.CLIENT,
    )
