"""BE433: a stage of Transformers' own pipeline runtime that is not its part of the model."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE433",
        name="stage-is-no-part",
        severity=Severity.ERROR,
        what="A stage of Transformers' pipeline runtime does not compute its part of the model: it applies an operation "
        "again, leaves one out, or raises.",
        why="The runtime does not read the pipeline plan. It replaces `embed_tokens`, `norm`, `lm_head` and the layers of "
        "others by identities and gives what it received to the model as `inputs_embeds`, so that all else of the forward "
        "runs on every stage.",
        use_instead="Tensor parallelism alone with this client, or a client that reads the plan.",
        fix_safety="No edit is offered: no plan changes what this runtime does.",
        invalid=(
            Example(
                note="Granite multiplies the embeddings before its layers, and so again on every stage.",
                model="granite",
                overrides=(("embedding_multiplier", "12.0"),),
                client="transformers",
                stages=2,
            ),
        ),
        valid=(
            Example(
                note="Llama does nothing to the hidden states outside of its modules.",
                model="llama",
                client="transformers",
                stages=2,
            ),
        ),
    )
)
