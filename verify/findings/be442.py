"""BE442: a count of image tokens that is not what comes out."""

from collections.abc import Sequence

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


def count_differs(owner: str, place: Place, *, counted: int, emitted: int, sizes: Sequence[tuple[int, int]]) -> Finding:
    """The processor counts other tokens for images than it emits (`sizes` are heights and widths in pixels)."""
    which = "an image" if len(sizes) == 1 else f"{len(sizes)} images"
    shapes = ", ".join(f"{height} x {width}" for height, width in sizes)
    problem = f"it counts {counted} tokens for {which} of {shapes}, and emits {emitted}"
    return Finding(
        "BE442",
        Severity.ERROR,
        f"{owner}: {problem}.",
        place,
        why="an engine lays out the prompt by the processor's own counts and types",
        found=problem,
        needed="the number that it emits",
        fault=Fault.MODEL,
    )
