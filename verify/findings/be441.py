"""BE441: a processor without what engines ask of it."""

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE441",
        name="processor-incomplete",
        severity=Severity.ERROR,
        what="A multimodal processor lacks `image_token`, `image_token_ids` or `_get_num_multimodal_tokens`; or it raises when "
        "it is made, or given an image.",
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


def constructor_raises(error: str, place: Place) -> Finding:
    """The processor of the checkpoint raises when Transformers makes it."""
    return _incomplete(
        "The processor", place, f"its constructor raises {_line(error)}", "a constructor that runs on its own files"
    )


def raises(owner: str, given: str, error: str, place: Place) -> Finding:
    """The processor, of class `owner`, raises on what it is given."""
    return _incomplete(owner, place, f"it raises on {given}: {_line(error)}", "an answer")


def text_refused(owner: str, place: Place, error: str) -> Finding:
    """Transformers' own processor, of class `owner`, wants an image in each prompt."""
    problem = f"it raises on text without images: {_line(error)}."
    return Finding(
        "BE441",
        Severity.WARNING,
        f"{owner}: {problem}",
        place,
        why="a client that gives it every prompt cannot serve text alone; vllm from 0.32 on tokenizes such prompts itself",
        found="an error",
        needed="an image in each prompt, or a client that does not ask",
        fault=Fault.MODEL,
    )


def no_replacements(owner: str, place: Place) -> Finding:
    """The processor, of class `owner`, does not say where its placeholders were: vLLM from 0.32 on raises on images."""
    problem = "it returns no text_replacement_offsets"
    return Finding(
        "BE441",
        Severity.WARNING,
        f"{owner}: {problem}.",
        place,
        why="vllm 0.32 finds the images of a prompt by them, and refuses images without; older versions use the types and counts",
        found=problem,
        needed="a __call__ that honours return_text_replacement_offsets, as ProcessorMixin's own does",
        fault=Fault.MODEL,
    )


def _line(error: str) -> str:
    return " ".join(error.split())[:160]
