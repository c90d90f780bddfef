"""BE441: a processor without what engines ask of it."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE441",
        name="processor-incomplete",
        severity=Severity.ERROR,
        what="A multimodal processor lacks `image_token`, `image_token_ids` or `_get_num_multimodal_tokens`.",
        why="An engine lays out the prompt before it has run the vision tower, and asks the processor how "
        "many tokens each image becomes.",
        use_instead="All three; the method returns a `MultiModalData`.",
        fix_safety="No edit is offered: an edit is of a plan, and here it is the model's own files that change.",
        invalid=(
            Example(
                note="No count.",
                code="""\
class Processor(Processor):
    _get_num_multimodal_tokens = None
""",
            ),
        ),
        valid=(
            Example(
                note="It counts.",
                code="""\
class Processor(Processor):
    pass
""",
            ),
        ),
    )
)
