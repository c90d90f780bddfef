"""BE414: heads that the client cannot divide."""

from shardproof.planner.ir.findings import Finding, Place, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE414",
        name="degree-refused",
        severity=Severity.ERROR,
        what="The client divides heads, or the features of a linear layer or of experts, by the number of ranks, and they do "
        "not divide.",
        why="An engine gives every rank an attention of whole heads. vLLM asks this of the query heads, and "
        "repeats key-value heads where there are fewer than ranks; SGLang asks it of both; TGI divides "
        "without a check. Engines refuse features that do not divide evenly, which Transformers shards unevenly, "
        "and a part of a block that is quantised as one.",
        use_instead="A degree that divides them.",
        fix_safety="No edit is offered: no plan changes the number of heads or features.",
        invalid=(
            Example(
                note="vLLM refuses a width that is odd.",
                model="llama",
                overrides=(("intermediate_size", "511"),),
                client="vllm",
            ),
            Example(
                note="SGLang cannot deal two key-value heads out to four ranks.",
                model="llama",
                overrides=(("num_key_value_heads", "2"),),
                client="sglang",
                degree=4,
            ),
        ),
        valid=(
            Example(
                note="vLLM repeats them.",
                model="llama",
                overrides=(("num_key_value_heads", "2"),),
                client="vllm",
                degree=4,
            ),
        ),
    )
)


def heads_do_not_divide(name: str, count: int, *, degree: int, client: str, cite: str) -> Finding:
    """`count` heads (`name`: query or key-value) have no equal part for each of `degree` ranks."""
    return Finding(
        "BE414",
        Severity.ERROR,
        f"{client} divides {count} {name} heads by {degree} ranks, which does not divide evenly.",
        why=f"every rank gets an attention of whole heads ({cite})",
        found=f"{count} {name} heads, {degree} ranks",
        needed="a degree that divides the heads",
    )


def width_does_not_divide(width: str, module: str, *, degree: int, client: str, cite: str) -> Finding:
    """`width` (how many features of what) has no equal part for each of `degree` ranks."""
    problem, needed = "which does not divide evenly", f"a multiple of {degree}, or another degree"
    message = f"{client} divides the {width} by {degree} ranks, {problem}."
    return _refused_width(width, module, message=message, cite=cite, needed=needed)


def block_is_cut(width: str, module: str, *, block: int, degree: int, client: str, cite: str) -> Finding:
    """A rank's part of `width` would end inside a quantised block of `block` features."""
    problem = f"which cuts blocks of {block} that are quantised as one"
    needed = f"a multiple of {block} on each rank, or another degree"
    message = f"{client} divides the {width} by {degree} ranks, {problem}."
    return _refused_width(width, module, message=message, cite=cite, needed=needed)


def _refused_width(width: str, module: str, *, message: str, cite: str, needed: str) -> Finding:
    return Finding(
        "BE414",
        Severity.ERROR,
        message,
        Place(module=module),
        why=f"every rank gets equally many, and whole blocks ({cite})",
        found=width,
        needed=needed,
    )
