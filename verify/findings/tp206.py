"""TP206: a part where the whole is needed."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="TP206",
        name="sharded-not-gathered",
        severity=Severity.ERROR,
        what="A value is sharded where the whole of it is needed: the model's output, or an op that reads "
        "along the dim.",
        why="A rank sees n / t of n features: its logits are not the model's, and a norm or softmax over "
        "them divides by another sum.",
        use_instead="`colwise_gather_output` on the layer that makes it, or `rowwise` on the one that reads it.",
        fix_safety="An edit is offered where it was proved.",
        invalid=(
            Example(
                note="Each rank returns its own part of the vocabulary.",
                model="llama",
                plan=(("lm_head", "colwise"),),
            ),
        ),
        valid=(
            Example(
                note="The logits are gathered.",
                model="llama",
                plan=(("lm_head", "colwise_gather_output"),),
            ),
        ),
    )
)
