"""BE443: token types that do not say where an image lies."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE443",
        name="token-types-wrong",
        severity=Severity.ERROR,
        what="`return_mm_token_type_ids` is not honoured, or the types are not contiguous, or mark tokens that"
        " are not of the image.",
        why="Engines find each image by its run of ones (0 text, 1 image, 2 video); the run holds the "
        "separators too, and nothing that the model does not replace.",
        use_instead="One run for each image, made of `image_token_ids`.",
        fix_safety="No edit is offered: an edit is of a plan, and here it is the model's own files that change.",
        invalid=(
            Example(
                note="The types are left out.",
                code="""\
class Processor(Processor):
    typed = False
""",
            ),
        ),
        valid=(
            Example(
                note="They are returned.",
                code="""\
class Processor(Processor):
    typed = True
""",
            ),
        ),
    )
)
