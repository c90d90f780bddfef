"""PL105: a plan that leaves every rank with the whole model."""

from shardproof.planner.ir.findings import Finding, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="PL105",
        name="plan-shards-nothing",
        severity=Severity.WARNING,
        what="The plan has entries, and none of them shards a parameter.",
        why="Every rank then holds all of the weights and does all of the work: right, and of no use.",
        use_instead="An entry that shards something: `colwise` and `rowwise` pairs on the linear layers, "
        "`embedding_rowwise` on the vocabulary.",
        fix_safety="No edit is offered: what may be sharded is what `plan suggest MODEL` finds out.",
        invalid=(
            Example(
                note="`replicate` does nothing.",
                model="llama",
                plan=(("model.layers.*.mlp.down_proj", "replicate"),),
                alone=True,
            ),
        ),
        valid=(
            Example(
                note="A pair that shards the intermediate features.",
                model="llama",
                plan=(
                    ("model.layers.*.mlp.gate_proj", "colwise"),
                    ("model.layers.*.mlp.up_proj", "colwise"),
                    ("model.layers.*.mlp.down_proj", "rowwise"),
                ),
                alone=True,
            ),
        ),
    )
)


def shards_nothing(owner: str) -> Finding:
    """No entry shards a parameter of the model of class `owner`."""
    return Finding(
        "PL105",
        Severity.WARNING,
        f"No entry of this plan shards a parameter of {owner}.",
        why="every rank holds all the weights and does all the work",
        found="every parameter whole on every rank",
        needed="an entry that shards, such as a colwise and rowwise pair",
    )
