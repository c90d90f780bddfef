"""PP304: layers that no stage runs."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="PP304",
        name="layer-dropped",
        severity=Severity.ERROR,
        what="Over all stages, a layer runs no time, or more than once.",
        why="The stages together must be the model: f = f_p(...f_2(f_1(x))). A split that is off by one "
        "drops a layer or repeats it, and the output still looks like text.",
        use_instead="A split whose stages cover the layers once: with L layers on p stages, cuts at increasing "
        "numbers from 0 to L.",
        fix_safety="No edit is offered: the split is the engine's, or follows from the config.",
        invalid=(Example(note="Layer 8 is on no stage.", code="stages = [range(0, 8), range(9, 16)]"),),
        valid=(Example(note="Every layer once.", code="stages = [range(0, 8), range(8, 16)]"),),
    )
)
