"""TP207: a gradient that is left in parts."""

from shardproof.planner.ir.findings import Finding, Place, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="TP207",
        name="gradient-not-reduced",
        severity=Severity.ERROR,
        what="A parameter is whole on every rank, and the gradient that a rank computes is only its own term.",
        why="Each rank sees its own heads, so dL/dw is the sum of the ranks' terms. The forward is exact; "
        "in training the copies drift apart.",
        use_instead="`replicated_with_grad_allreduce` on the module that holds the parameter.",
        fix_safety="That edit is offered where it was proved.",
        invalid=(
            Example(
                note="Per-head norms see this rank's heads only.",
                model="qwen3",
                plan=(("model.layers.*.self_attn.q_norm", None), ("model.layers.*.self_attn.k_norm", None)),
            ),
        ),
        valid=(
            Example(
                note="Their gradients are summed.",
                model="qwen3",
                plan=(
                    ("model.layers.*.self_attn.q_norm", "replicated_with_grad_allreduce"),
                    ("model.layers.*.self_attn.k_norm", "replicated_with_grad_allreduce"),
                ),
            ),
        ),
    )
)


def gradient_stays_partial(parameter: str, place: Place) -> Finding:
    """Each rank has only the part of the gradient that runs through its own shard."""
    return Finding(
        "TP207",
        Severity.ERROR,
        f"the gradient of {parameter} stays partial: each rank holds its own shard's share of it",
        place,
        why="a whole tensor meets a shard, so each rank sees only the part of the loss that runs through its shard",
        found="P(sum), never reduced",
        needed="its gradient all-reduced, as replicated_with_grad_allreduce does",
    )
