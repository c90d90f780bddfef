"""PL103: a style on a module that lacks what the style reads."""

from shardproof.planner.ir.findings import Finding, Place, Severity
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


def lacks_attribute(style: str, attribute: str, place: Place, *, kind: str, needed: str) -> Finding:
    """The style reads an attribute that the module at `place`, of class `kind`, does not have."""
    return Finding(
        "PL103",
        Severity.ERROR,
        f'The style "{style}" reads {attribute}, which {place.module} ({kind}) does not have.',
        place,
        why=f"{style} takes its full width from {attribute}",
        found=f"{kind} without {attribute}",
        needed=needed,
    )


def lacks_rope_dim(config: str, place: Place) -> Finding:
    """The style for latent attention, under a config (its class is given) without `qk_rope_head_dim`."""
    return Finding(
        "PL103",
        Severity.ERROR,
        'The style "mla_kv_a_proj" reads qk_rope_head_dim, which the config does not have.',
        place,
        why="the last qk_rope_head_dim features of the projection bypass the layer that reduces their gradient",
        found=f"{config} without qk_rope_head_dim",
        needed="latent attention with qk_rope_head_dim in its config, or no entry",
    )
