"""BE442: a count of image tokens that is not what comes out."""

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE442",
        name="image-count-wrong",
        severity=Severity.ERROR,
        what="The count that a processor gives for an image size is not the number of tokens that it emits.",
        why="The engine reserves that many places, and writes the image's embeddings over them.",
        use_instead="The same arithmetic in both places; images of several shapes in a test.",
        fix_safety="No edit is offered: edits change a plan, and here the model's own files have to change.",
        invalid=(
            Example(
                note="One too many.",
                code="""\
class Processor(Processor):
    extra = 1
""",
            ),
        ),
        valid=(
            Example(
                note="The number that comes out.",
                code="""\
class Processor(Processor):
    extra = 0
""",
            ),
        ),
    )
)


def count_differs(owner: str, place: Place, *, counted: int, emitted: int, size: tuple[int, int]) -> Finding:
    """The processor counts other tokens for an image (`size` is height and width in pixels) than it emits."""
    problem = f"it counts {counted} tokens for an image of {size[0]} x {size[1]}, and emits {emitted}"
    needed = "the number that it emits"
    return Finding(
        "BE442",
        Severity.ERROR,
        f"{owner}: {problem}.",
        place,
        why="an engine lays out the prompt by the processor's own counts and types",
        found=problem,
        needed=needed,
        fault=Fault.MODEL,
    )
