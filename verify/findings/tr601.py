"""TR601: gradients cannot be clipped by their norm, or the norm is another."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="TR601",
        name="clipping-fails",
        severity=Severity.WARNING,
        what="`clip_grad_norm_` over all parameters raises on the ranks, or finds another norm than one device does.",
        why="A plan leaves some parameters as plain tensors and makes distributed tensors of others, and "
        "torch does not put the two into one list operation. Where it does not raise, a norm over parts "
        "counts some of them once a rank, or not at all.",
        use_instead="The norm of each kind by itself (`get_total_norm`), put together, then `clip_grads_with_norm_` "
        "for each kind.",
        fix_safety="No edit of the plan is offered: another way is named only where it was tried, and was right.",
        invalid=(
            Example(
                note="All gradients in one list.",
                code="clip_grad_norm_(model.parameters(), 1.0)",
            ),
        ),
        valid=(
            Example(
                note="Each kind by itself, one norm for both.",
                code="total = vector_norm(stack([get_total_norm(kind) for kind in kinds]))\n"
                "for kind in kinds:\n"
                "    clip_grads_with_norm_(kind, 1.0, total)",
            ),
        ),
    )
)
