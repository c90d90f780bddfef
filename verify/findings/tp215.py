"""TP215: a sharded parameter that is used where no style makes it a local tensor."""

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
from shardproof.planner.ir.graph import Op
from shardproof.planner.ir.plan import generic
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


def used_out_of_reach(parameter: str, op: Op, entry: str) -> Finding:
    """An op reads a sharded parameter where no style has made it a local tensor."""
    owner = parameter.rpartition(".")[0]
    elsewhere = "" if op.module == owner else f", outside the forward of {owner}"
    return Finding(
        "TP215",
        Severity.ERROR,
        f"{op.target.rpartition('.')[2]} in {op.module} uses the sharded {parameter}{elsewhere}",
        Place(entry if elsewhere else generic(owner), op.module, op.source),
        why="a sharded parameter is a distributed tensor, and meets plain tensors only where a style makes it local",
        found="no style that makes it local there",
        needed=f"local_params on {owner or 'its module'}, or the parameter whole",
    )


def not_initialisable(error: str, place: Place) -> Finding:
    """The model's `_init_weights` combines a sharded parameter with plain tensors."""
    return Finding(
        "TP215",
        Severity.ERROR,
        error,
        place,
        why="the client calls it after loading, when a sharded parameter is a distributed tensor",
        found="an op on a distributed tensor and a plain one",
        needed="an _init_weights that only writes the parameter, or the parameter whole",
        fault=Fault.MODEL,
    )
