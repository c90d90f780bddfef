"""TR603: a step of the optimizer raises, or moves the weights elsewhere."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="TR603",
        name="optimizer-step-differs",
        severity=Severity.WARNING,
        what="After steps of AdamW the weights of the ranks, put together, are not those of one device.",
        why="Torch's list implementation (`foreach`, the default on a GPU) refuses lists in which plain and "
        "distributed tensors are mixed.",
        use_instead="A parameter group for each kind, or `foreach=False`.",
        fix_safety="No edit of the plan is offered: another way is named only where it was tried, and was right.",
        invalid=(
            Example(
                note="One group holds both kinds.",
                code="AdamW(model.parameters(), foreach=True)",
            ),
        ),
        valid=(
            Example(
                note="A group for each kind.",
                code='AdamW([{"params": distributed}, {"params": plain}])',
            ),
        ),
    )
)
