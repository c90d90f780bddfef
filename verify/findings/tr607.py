"""TR607: a compiled training step raises, or is wrong."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="TR607",
        name="compiled-step-fails",
        severity=Severity.WARNING,
        what="`torch.compile` of the sharded model raises, or its gradients are another's; the model compiles"
        " on one device.",
        why="The capture sees the styles' hooks and distributed tensors, which one device does not have.",
        use_instead="The model without `torch.compile`, or its layers compiled one by one.",
        fix_safety="No edit of the plan is offered: another way is named only where it was tried, and was right.",
        invalid=(
            Example(
                note="The whole sharded model.",
                code="model.compile()",
            ),
        ),
        valid=(
            Example(
                note="The model as it is.",
                code="model(**batch).loss.backward()",
            ),
        ),
    )
)
