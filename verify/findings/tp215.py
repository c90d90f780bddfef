"""TP215: a sharded parameter that is used where no style makes it a local tensor."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="TP215",
        name="parameter-out-of-reach",
        severity=Severity.ERROR,
        what="A sharded parameter is used where the client still holds it as a distributed tensor.",
        why="Transformers keeps every sharded parameter as a DTensor, and makes it a local one only inside the forward of "
        "the module that owns it, and only under the styles that say so. Elsewhere it meets plain tensors, and torch "
        "raises on the mixture.",
        use_instead="`local_params` on the module that owns a bare parameter, beside the parameter's own entry; a "
        "projection that is called, rather than its `weight` handed to another function.",
        fix_safety="The edit that adds the style is offered where it was proved.",
        invalid=(
            Example(
                note="The sinks are sharded by head, and nothing makes them local in the attention.",
                model="granite_swa",
                plan=(("model.layers.*.self_attn", None),),
            ),
        ),
        valid=(Example(note="`local_params` on the attention.", model="granite_swa"),),
    )
)
