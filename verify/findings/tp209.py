"""TP209: a constant that a rank computes otherwise."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="TP209",
        name="constant-differs",
        severity=Severity.ERROR,
        what="An op has another constant on a rank than in the single-device program, and it is no shape.",
        why="A scale, an eps or a divisor taken from a local width is off by a factor of the degree.",
        use_instead="The constant from the config, not from a tensor's size; or no entry for the layer whose "
        "width it is.",
        fix_safety="No edit is offered: the modeling code has to change, or the module stays whole.",
        invalid=(
            Example(
                note="The rank's key has fewer features than the model's.",
                code="scale = 1 / math.sqrt(key.shape[-1])  # after key was split over ranks by features",
            ),
        ),
        valid=(Example(note="A number that does not depend on the rank.", code="scale = self.head_dim**-0.5"),),
    )
)
