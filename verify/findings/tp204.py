"""TP204: a partial sum that nobody reduces."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="TP204",
        name="partial-not-reduced",
        severity=Severity.ERROR,
        what="Each rank holds one term of a sum, and the sum is needed before the terms are added.",
        why="x = x_1 + ... + x_t, and f(x_1) + ... + f(x_t) is not f(x) for an f that is not linear; a "
        "bias or a residual would be added t times.",
        use_instead="`rowwise` on the linear layer that contracts the sharded features: it all-reduces its output; "
        "`moe_tp_experts` on stacked experts.",
        fix_safety="An edit is offered where it was proved.",
        invalid=(
            Example(
                note="The experts run on their own parts, and nothing sums what they give.",
                model="mixtral",
                plan=(("model.layers.*.mlp.experts", "local_params"),),
            ),
        ),
        valid=(
            Example(
                note="`moe_tp_experts` sums their output.",
                model="mixtral",
                plan=(("model.layers.*.mlp.experts", "moe_tp_experts"),),
            ),
        ),
    )
)
