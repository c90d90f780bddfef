"""TP217: a shard that cannot be viewed as rows where it is trained."""

from shardproof.planner.ir.findings import Finding, Place, Severity
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


def transposed_input(entry: str, place: Place) -> Finding:
    """A module that is trained is given a shard whose strides are not those of a contiguous tensor."""
    return Finding(
        "TP217",
        Severity.ERROR,
        f"{place.module} is given a transposed tensor, which it cannot view as rows where it is trained",
        Place(entry, place.module, place.source),
        why="where gradients are wanted the client takes a shard's strides for those of a contiguous tensor",
        found="strides that make no rows",
        needed="a contiguous input, or a style that takes the whole input",
    )
