"""TP208: a gradient that is counted once per rank."""

from shardproof.planner.ir.findings import Finding, Place, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="TP208",
        name="gradient-counted-twice",
        severity=Severity.ERROR,
        what="A gradient that every rank has whole is summed over the ranks.",
        why="The sum of t equal gradients is t times the gradient: the forward is exact, and the learning "
        "rate of that parameter is multiplied by the degree.",
        use_instead="No `replicated_with_grad_allreduce` on a module that sees the whole tensor.",
        fix_safety="The edit that removes the entry is offered where it was proved.",
        invalid=(
            Example(
                note="The norm before the attention sees the whole hidden state on every rank.",
                model="llama",
                plan=(("model.layers.*.input_layernorm", "replicated_with_grad_allreduce"),),
            ),
        ),
        valid=(Example(note="No entry for it.", model="llama"),),
    )
)


def whole_gradient_is_summed(parameter: str, place: Place) -> Finding:
    """Every rank has the whole gradient, and it is all-reduced all the same."""
    return Finding(
        "TP208",
        Severity.ERROR,
        f"the gradient of {parameter} is summed over ranks that all hold the whole of it",
        place,
        why="a whole gradient summed over the ranks is the gradient times the degree",
        found="whole, then all-reduced",
        needed="no all-reduce of the gradient",
    )
