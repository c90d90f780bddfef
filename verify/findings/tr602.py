"""TR602: gradients added up over several backwards are another sum."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="TR602",
        name="accumulated-gradient-differs",
        severity=Severity.WARNING,
        what="Two backwards without zeroing between, or with zeroing in place, leave other gradients than on "
        "one device.",
        why="A hook that reduces the accumulated gradient, and not what one backward adds, counts the first "
        "backward once a rank.",
        use_instead="`zero_grad()` before every backward, and the caller adds up the gradients.",
        fix_safety="No edit of the plan is offered: another way is named only where it was tried, and was right.",
        invalid=(
            Example(
                note="The first backward counts twice on two ranks.",
                code="loss(first).backward()\nloss(second).backward()\noptimizer.step()",
            ),
        ),
        valid=(
            Example(
                note="Each backward begins with no gradient.",
                code="model.zero_grad()\nloss(second).backward()\nkept = add(kept, gradients(model))",
            ),
        ),
    )
)
