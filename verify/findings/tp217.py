"""TP217: a shard that cannot be viewed as rows where it is trained."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="TP217",
        name="strided-shard",
        severity=Severity.ERROR,
        what="A `rowwise` linear layer is given a transposed tensor of more than two dims.",
        why="Where gradients are wanted, Transformers makes a DTensor of the shard with the strides of a contiguous tensor "
        "(5.23.0, distributed/tensor_parallel.py, `_from_local_last_dim_shard`). The linear layer views that as rows, "
        "and torch raises, for the local tensor is not laid out so. Without gradients nothing fails.",
        use_instead="`.contiguous()` on the layer's input in the modeling code, or a style that takes the whole input: "
        "`colwise_gather_output`, `rowwise_split_input`.",
        fix_safety="An edit is offered where it was proved.",
        invalid=(
            Example(
                note="The heads are moved last by a permutation.",
                code='"layers.*.attn.mix": "rowwise",\n\nscores = self.mix(scores.permute(0, 2, 3, 1))',
            ),
        ),
        valid=(
            Example(
                note="The permutation is written out.",
                code='"layers.*.attn.mix": "rowwise",\n\nscores = self.mix(scores.permute(0, 2, 3, 1).contiguous())',
            ),
        ),
    )
)
