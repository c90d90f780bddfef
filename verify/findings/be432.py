"""BE432: what every pipeline stage does again."""

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
from shardproof.planner.ir.graph import Op
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE432",
        name="done-on-every-stage",
        severity=Severity.ERROR,
        what="The forward changes the hidden states outside the modules of the pipeline plan, so every stage "
        "does it again.",
        why="A later stage receives the hidden states as `inputs_embeds` and runs the whole forward of the "
        "base model, with the modules of the plan that it does not own replaced by identities. A position"
        " embedding added before the layers is then added once for each stage, and a last norm that the "
        "plan leaves out is applied by each.",
        use_instead="The module in the plan, in the order in which it runs; an operation that no module of the plan "
        "owns, moved into one.",
        fix_safety="No edit is offered: edits change tensor-parallel entries only.",
        invalid=(
            Example(
                note="GPT-2 adds its position embeddings in the forward of the base model.",
                model="gpt2",
                client="vllm",
                stages=2,
                alone=True,
            ),
        ),
        valid=(
            Example(
                note="Rotary embeddings go to the layers, and nothing else is done on the way.",
                model="llama",
                client="vllm",
                stages=2,
            ),
        ),
    )
)


def done_before_layers(client: str, op: Op) -> Finding:
    """An op outside the plan's modules changes the hidden states on the way to the layers."""
    return _done_again(client, op, "before its layers, and a later stage does it again to what it received")


def done_after_layers(client: str, op: Op) -> Finding:
    """An op outside the plan's modules changes the hidden states on the way from the layers to the output."""
    return _done_again(client, op, "after its layers, and every stage does it to what it passes on")


def _done_again(client: str, op: Op, when: str) -> Finding:
    return Finding(
        "BE432",
        Severity.ERROR,
        f"{op.module or 'the model'} changes the hidden states {when} ({op.target}).",
        Place(module=op.module or None, source=op.source),
        why=f"{client} runs the whole forward on every stage, with the plan's modules alone replaced",
        found=f"{op.target} outside the modules of the pipeline plan",
        needed="the module in the plan, in the order it runs; or the operation inside a module that is",
        fault=Fault.MODEL,
    )
