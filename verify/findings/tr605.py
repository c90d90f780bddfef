"""TR605: ranks that must drop the same elements do not."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="TR605",
        name="replicas-draw-apart",
        severity=Severity.WARNING,
        what="Dropout acts on a tensor that every rank holds whole, and the ranks draw other elements: their "
        "replicas drift apart.",
        why="A replicated parameter gets its gradient from this rank's draw. With a seed of its own on each "
        "rank the copies of one parameter get different gradients, and are different parameters after a "
        "step.",
        use_instead="One seed for all ranks of a tensor-parallel group. Dropout on a rank's own part (its heads) may"
        " be drawn apart.",
        fix_safety="No edit of the plan is offered: another way is named only where it was tried, and was right.",
        invalid=(
            Example(
                note="Every rank draws its own mask of the residual stream.",
                code="torch.manual_seed(seed + rank)",
            ),
        ),
        valid=(
            Example(
                note="Ranks of one group draw alike, groups apart.",
                code="torch.manual_seed(seed + rank // tp)",
            ),
        ),
    )
)
