"""TR609: training that goes on from a checkpoint takes another step."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="TR609",
        name="resuming-differs",
        severity=Severity.WARNING,
        what="A fresh model and optimizer that read what the ranks saved take another next step than training"
        " that was not interrupted.",
        why="A parameter or a moment that is a plain tensor on each rank is saved once, from one rank.",
        use_instead="The way of saving that was tried and is right.",
        fix_safety="No edit of the plan is offered: another way is named only where it was tried, and was right.",
        invalid=(
            Example(
                note="One copy of what differs by rank.",
                code="dcp.save(state, checkpoint_id=folder)",
            ),
        ),
        valid=(
            Example(
                note="A file a rank.",
                code='torch.save(state, f"{folder}/{rank}.pt")',
            ),
        ),
    )
)
