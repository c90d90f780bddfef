"""TR604: a step under autocast is further off than rounding explains."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="TR604",
        name="mixed-precision-differs",
        severity=Severity.ERROR,
        what="Under autocast to bfloat16, the gradients of the ranks are several times as far from the exact "
        "ones as those of one device.",
        why="A sum over ranks that is made in the narrow type rounds once a rank.",
        use_instead="A reduction in float32, or float32 for the layer.",
        fix_safety="No edit of the plan is offered: another way is named only where it was tried, and was right.",
        invalid=(
            Example(
                note="The partial sums are rounded before they are added.",
                code="with autocast(dtype=torch.bfloat16):\n    partial = self.down_proj(x)",
            ),
        ),
        valid=(
            Example(
                note="The layer computes in float32.",
                code="with autocast(enabled=False):\n    partial = self.down_proj(x.float())",
            ),
        ),
    )
)
