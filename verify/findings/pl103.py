"""PL103: a style on a module that lacks what the style reads."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="PL103",
        name="style-needs-attribute",
        severity=Severity.ERROR,
        what="The module has not the attribute that the style reads.",
        why="The colwise family reads `out_features`, the rowwise family `in_features`, "
        "`mla_kv_a_proj` reads `config.qk_rope_head_dim`. "
        "Without it Transformers raises when the model is loaded, or in its first forward.",
        use_instead="A style for that kind of module: `embedding_rowwise` for an embedding; for GPT-2's `Conv1D`, whose weight "
        "lies the other way round, `embedding_colwise` with `colwise` on its bias, which gathers its output; for a block of "
        "modules, entries for the linear layers inside it.",
        fix_safety="Offered for an embedding alone: there one style fits. For other modules it is a choice, so "
        "no edit is offered.",
        invalid=(
            Example(
                note="An embedding is no linear layer.",
                model="llama",
                plan=(("model.embed_tokens", "colwise"),),
            ),
            Example(
                note="The MLP is a block, not a linear layer.",
                model="llama",
                plan=(("model.layers.*.mlp", "colwise"),),
            ),
            Example(
                note="Conv1D keeps its weight transposed, and has no out_features.",
                model="gpt2",
                plan=(("transformer.h.*.mlp.c_fc", "colwise"),),
                alone=True,
            ),
        ),
        valid=(
            Example(
                note="The style that is made for embeddings.",
                model="llama",
                plan=(("model.embed_tokens", "embedding_rowwise"),),
            ),
        ),
    )
)
