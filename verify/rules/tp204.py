"""TP204: a partial sum that nobody reduces."""

from planner.ir.findings import Severity
from verify.catalogue import Example, Rule, register

register(
    Rule(
        code="TP204",
        name="partial-not-reduced",
        severity=Severity.ERROR,
        what="Each rank holds one term of a sum, and the sum is needed before the terms are added.",
        why="x = x_1 + ... + x_t, and f(x_1) + ... + f(x_t) is not f(x) for an f that is not linear; a "
        "bias or a residual would be added t times.",
        use_instead="`rowwise` on the linear layer that contracts the sharded features: it all-reduces its output.",
        fix_safety="An edit is offered where it was proved.",
        invalid=(
            Example(
                note="A parameter's entry lays it out and hooks nothing, so the product stays a partial sum.",
                model="llama",
                plan=(
                    ("model.layers.*.mlp.down_proj", None),
                    ("model.layers.*.mlp.down_proj.weight", "rowwise"),
                ),
            ),
        ),
        valid=(
            Example(
                note="The module's entry reduces.",
                model="llama",
                plan=(("model.layers.*.mlp.down_proj", "rowwise"),),
            ),
        ),
    )
)
