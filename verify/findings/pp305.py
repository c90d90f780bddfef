"""PP305: a stage's program that is not its part of the whole one."""

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
from shardproof.planner.ir.graph import Op
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="PP305",
        name="stage-program-differs",
        severity=Severity.ERROR,
        what="The program of a pipeline stage is not its part of the whole program: an op is dropped, run again or run on "
        "something else, a layer is given another value, a weight is not trained as on one device.",
        why="The stages together must be the model, f = f_p(...f_2(f_1(x))). A stage runs the model's own forward; what it "
        "does to what it received besides its own layers changes the result, and raises nothing.",
        use_instead="A stage whose received values enter where the whole program has them, and that passes its layers the "
        "masks, positions and caches of their own numbers.",
        fix_safety="No edit is offered: the stage's program is the runtime's, or the model's.",
        invalid=(
            Example(
                note="The second stage scales what it received as if it were embeddings.",
                code="hidden_states = received * self.embedding_multiplier",
            ),
        ),
        valid=(Example(note="What was received enters the first own layer.", code="hidden_states = received"),),
    )
)


def stage_differs(
    what: str, module: str | None, op: Op | None = None, *, found: str = "", needed: str = "the whole program's part"
) -> Finding:
    """A stage's program is not its part of the whole one: `what` says how, `op` is the op that shows it."""
    return Finding(
        "PP305",
        Severity.ERROR,
        what,
        Place(module=module or None, source=op.source if op else None),
        why="the stages together must compute what one device computes, every op once",
        found=found or (op.target if op else "another value"),
        needed=needed,
    )


def stage_raises(stage: int, error: str, place: Place) -> Finding:
    """A stage's forward raises at `place`."""
    return Finding(
        "PP305",
        Severity.ERROR,
        f"stage {stage} raises: {error}",
        place,
        why="the model's forward meets something absent that it reads",
        found=error.partition(":")[0],
        needed="a forward that runs with absent modules",
        fault=Fault.MODEL,
    )
