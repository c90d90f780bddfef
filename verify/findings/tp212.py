"""TP212: one tensor under two names, placed in two ways."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="TP212",
        name="tied-placed-differently",
        severity=Severity.ERROR,
        what="A tied parameter (the embedding and the head, mostly) is sharded under one of its names and "
        "not, or otherwise, under the other.",
        why="It is one tensor: the second entry lays out what the first has laid out already, and a "
        "lookup or a product then reads the wrong rows.",
        use_instead="Styles that agree: `embedding_rowwise` on the embedding with `colwise_gather_output` on the "
        "head, both sharding the vocabulary; or neither.",
        fix_safety="An edit is offered where it was proved.",
        invalid=(
            Example(
                note="The embedding is cut by hidden features, the head by vocabulary.",
                model="llama",
                overrides=(("tie_word_embeddings", "true"),),
                plan=(("model.embed_tokens", "embedding_colwise"), ("lm_head", "colwise_gather_output")),
            ),
        ),
        valid=(
            Example(
                note="Both are cut by vocabulary.",
                model="llama",
                overrides=(("tie_word_embeddings", "true"),),
                plan=(("model.embed_tokens", "embedding_rowwise"), ("lm_head", "colwise_gather_output")),
            ),
        ),
    )
)
