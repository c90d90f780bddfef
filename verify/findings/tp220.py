"""TP220: a backward of the model's own behind which gradients are not yet summed."""

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="TP220",
        name="own-backward-of-a-part",
        severity=Severity.UNDECIDED,
        what="A custom autograd function or a hook on a tensor is given a gradient that is only the rank's share of the "
        "whole one.",
        why="If the backward is linear, the shares of its results add up; if it is not (a norm, a clamp), they do not. Which it "
        "is was not decided.",
        use_instead="A whole gradient there: an entry whose style sums the gradient before it reaches the function.",
        fix_safety="No edit is offered.",
        invalid=(
            Example(
                note="The gradient of a replicated tensor that meets a shard is clipped before it is summed.",
                code='"layers.*.mlp.up_proj": "colwise",\n\nscale.register_hook(lambda grad: grad.clamp(-1, 1))',
            ),
        ),
        valid=(
            Example(
                note="No hook: the gradient is summed by the style.",
                code='"layers.*.self_attn.q_norm": "replicated_with_grad_allreduce",',
            ),
        ),
    )
)


def own_backward_of_partial_gradient(module: str, place: Place) -> Finding:
    """A custom backward gets a gradient that is still to be summed over the ranks."""
    return Finding(
        "TP220",
        Severity.UNDECIDED,
        f"a backward of the model's own in {module or 'the model'} is given a share of a gradient",
        place,
        why="only a linear backward gives shares that add up, and whether this one is linear was not decided",
        found="P(sum)",
        needed="R",
        fault=Fault.MODEL,
    )
