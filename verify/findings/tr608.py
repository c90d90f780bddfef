"""TR608: a checkpoint is not written, or does not hold the weights."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="TR608",
        name="saving-fails",
        severity=Severity.WARNING,
        what="Saving on the first rank alone waits for ever, or what was saved by all ranks holds other weights.",
        why="A sharded parameter is gathered from all ranks before it is written: whoever saves alone waits "
        "for the others.",
        use_instead="`model.save_pretrained(folder)` on every rank; the client writes on the first.",
        fix_safety="No edit of the plan is offered: another way is named only where it was tried, and was right.",
        invalid=(
            Example(
                note="The other ranks never come.",
                code="if rank == 0:\n    model.save_pretrained(folder)",
            ),
        ),
        valid=(
            Example(
                note="Every rank calls it.",
                code="model.save_pretrained(folder)",
            ),
        ),
    )
)
