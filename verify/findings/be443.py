"""BE443: token types that do not say where an image lies."""

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
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
        fix_safety="No edit is offered: edits change a plan, and here the model's own files have to change.",
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


def types_not_returned(owner: str, place: Place) -> Finding:
    """The processor, of class `owner`, does not return token types where it is asked to."""
    return _wrong(owner, place, "return_mm_token_type_ids is not honoured", "mm_token_type_ids in what it returns")


def types_not_contiguous(owner: str, place: Place) -> Finding:
    """The tokens of one image are several runs of its type."""
    problem = "the types of one image's tokens are not contiguous"
    return _wrong(owner, place, problem, "one run, its separators included")


def token_not_of_image(owner: str, token: int, place: Place) -> Finding:
    """A token has the type of an image, and its id is none of the processor's `image_token_ids`."""
    problem = f"token {token} counts as image, and is none of image_token_ids"
    needed = "type 1 for tokens that the model replaces, and their separators, in image_token_ids"
    return _wrong(owner, place, problem, needed)


def _wrong(owner: str, place: Place, problem: str, needed: str) -> Finding:
    return Finding(
        "BE443",
        Severity.ERROR,
        f"{owner}: {problem}.",
        place,
        why="an engine lays out the prompt by the processor's own counts and types",
        found=problem,
        needed=needed,
        fault=Fault.MODEL,
    )


def token_typed_as_text(owner: str, token: int, place: Place) -> Finding:
    """A token of `image_token_ids` has the type of text."""
    problem = f"token {token} is one of image_token_ids, and counts as text"
    return _wrong(owner, place, problem, "type 1 for every token of an image")


def types_of_other_length(owner: str, place: Place, *, types: int, tokens: int) -> Finding:
    """There are more types, or fewer, than tokens."""
    return _wrong(owner, place, f"it returns {types} types for {tokens} tokens", "one type for each token")


def type_unknown(owner: str, kind: int, place: Place) -> Finding:
    """A prompt with images alone has a token of another type than text and image."""
    return _wrong(owner, place, f"a token of a prompt with images has the type {kind}", "0 for text, 1 for an image")


def text_typed_as_image(owner: str, place: Place) -> Finding:
    """A prompt without images has tokens of another type than text."""
    return _wrong(owner, place, "tokens of a prompt without images have the type of an image", "type 0 for text")
