"""TP219: a backward of the model's own that gives a wrong gradient on a rank."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="TP219",
        name="own-backward-is-wrong",
        severity=Severity.ERROR,
        what="A custom autograd function or a hook on a tensor gives a gradient that is not the rank's part of the whole "
        "gradient.",
        why="The forward shows nothing of it. The backward was run on a rank's part of the gradient, as autograd would, "
        "and its result does not lie as the value that it belongs to.",
        use_instead="A backward that works element by element on the sharded dim, or a whole input (a style that gathers).",
        fix_safety="An edit is offered where it was proved.",
        invalid=(
            Example(
                note="Gradients are summed over the dim that is sharded.",
                code='"layers.*.mlp.up_proj": "colwise",\n\n'
                "h.register_hook(lambda grad: grad.sum(-1, keepdim=True).expand_as(grad))",
            ),
        ),
        valid=(
            Example(
                note="Every element's gradient stays its own.",
                code='"layers.*.mlp.up_proj": "colwise",\n\nh.register_hook(lambda grad: grad * 0.5)',
            ),
        ),
    )
)
