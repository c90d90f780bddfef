"""BE441: a processor without what engines ask of it."""

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
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
        fix_safety="No edit is offered: edits change a plan, and here the model's own files have to change.",
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


def no_count_method(owner: str, place: Place) -> Finding:
    """The processor, of class `owner`, cannot say how many tokens an image becomes."""
    needed = "_get_num_multimodal_tokens(image_sizes=..., **kwargs) -> MultiModalData"
    return _incomplete(owner, place, "it has no _get_num_multimodal_tokens", needed)


def attribute_missing(owner: str, attribute: str, place: Place) -> Finding:
    """The processor, of class `owner`, lacks an attribute that engines read."""
    return _incomplete(owner, place, f"it has no {attribute}", f"self.{attribute} in its constructor")


def no_counts(owner: str, place: Place) -> Finding:
    """The processor, of class `owner`, returns no counts of image tokens."""
    problem = "_get_num_multimodal_tokens gives no MultiModalData"
    return _incomplete(owner, place, problem, "MultiModalData(num_image_tokens=...)")


def _incomplete(owner: str, place: Place, problem: str, needed: str) -> Finding:
    return Finding(
        "BE441",
        Severity.ERROR,
        f"{owner}: {problem}.",
        place,
        why="an engine lays out the prompt by the processor's own counts and types",
        found=problem,
        needed=needed,
        fault=Fault.MODEL,
    )
