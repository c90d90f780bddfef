"""TP207: a gradient that is left in parts."""

from shardproof.planner.ir.findings import Severity
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
