"""TR600: a plain training step is wrong on the ranks."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="TR600",
        name="training-step-differs",
        severity=Severity.ERROR,
        what="A forward and a backward in training mode give other gradients on the ranks than on one device,"
        " or raise there.",
        why="Code may take another path in training, and a style's backward has collectives of its own.",
        use_instead="What the run level says of the same model: it names the entry.",
        fix_safety="No edit of the plan is offered: another way is named only where it was tried, and was right.",
        invalid=(
            Example(
                note="Autograd refuses the write on a hooked output.",
                code='"layers.*.mlp.up_proj": "colwise",\n\nhidden += self.up_proj(x)',
            ),
        ),
        valid=(
            Example(
                note="A new tensor is made.",
                code='"layers.*.mlp.up_proj": "colwise",\n\nhidden = hidden + self.up_proj(x)',
            ),
        ),
    )
)
