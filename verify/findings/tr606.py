"""TR606: activations computed again give other gradients, or raise."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="TR606",
        name="checkpointing-fails",
        severity=Severity.WARNING,
        what="With gradient checkpointing the ranks give other gradients than one device, or raise.",
        why="The forward runs a second time inside the backward, with the collectives of its styles; hooks "
        "may count a call twice.",
        use_instead="The other kind of checkpointing, which was tried, or none.",
        fix_safety="No edit of the plan is offered: another way is named only where it was tried, and was right.",
        invalid=(
            Example(
                note="A kind that fails.",
                code='model.gradient_checkpointing_enable({"use_reentrant": True})',
            ),
        ),
        valid=(
            Example(
                note="The other kind.",
                code='model.gradient_checkpointing_enable({"use_reentrant": False})',
            ),
        ),
    )
)
