"""DY502: the ranks give another gradient."""

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="DY502",
        name="gradient-differs",
        severity=Severity.ERROR,
        what="The output agrees on real ranks, and a parameter's gradient does not.",
        why="The backward has collectives of its own. One that is missing leaves each rank with its own "
        "term of a sum; one too many multiplies it by the degree.",
        use_instead="`replicated_with_grad_allreduce` where a whole parameter sees this rank's heads; no such "
        "entry where it sees everything.",
        fix_safety="An edit is offered where a run with it agreed.",
        invalid=(
            Example(
                note="A per-head norm without its reduction.",
                code='"layers.*.self_attn.q_proj": "colwise",\n# no entry for "layers.*.self_attn.q_norm"',
            ),
        ),
        valid=(
            Example(
                note="Its gradient is summed over the ranks.",
                code='"layers.*.self_attn.q_proj": "colwise",\n'
                '"layers.*.self_attn.q_norm": "replicated_with_grad_allreduce",',
            ),
        ),
    )
)


def gradient_differs(parameter: str, place: Place, *, what: str, error: float, count: int, style: str) -> Finding:
    """A gradient (`what` says of which backward) has this relative error; `count` gradients are wrong in all."""
    return Finding(
        "DY502",
        Severity.ERROR,
        f"the {what} of {parameter} differs by {error:.1e} ({count} differ in all)",
        place,
        why="each rank sees only its own part of the loss's dependence on it, and the parts must be summed once",
        found=style,
        needed="a style that reduces this gradient once",
    )


def accumulated_gradient_differs(place: Place, *, degree: int, count: int) -> Finding:
    """Transformers' hook reduces the accumulated gradient of `count` parameters, so that the first backward counts
    `degree` times.
    """
    return Finding(
        "DY502",
        Severity.WARNING,
        f"with gradients accumulated over two backwards, Transformers counts the first one {degree} times for "
        f"{count} parameters under replicated_with_grad_allreduce",
        place,
        why="its hook all-reduces the accumulated gradient, not what one backward adds",
        found=f"{degree + 1} g",
        needed="2 g; until it is mended, zero the gradients before every backward",
        fault=Fault.CLIENT,
    )
