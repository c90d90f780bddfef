"""BE414: heads that the client cannot divide."""

from planner.ir.findings import Severity
from verify.catalogue import Example, Rule, register

register(
    Rule(
        code="BE414",
        name="degree-refused",
        severity=Severity.ERROR,
        what="The client divides the heads by the number of ranks, and they do not divide.",
        why="An engine gives every rank an attention of whole heads. vLLM asks this of the query heads, and "
        "repeats key-value heads where there are fewer than ranks; SGLang asks it of both; TGI divides "
        "without a check.",
        use_instead="A degree that divides the heads.",
        fix_safety="No edit is offered: no plan changes the number of heads.",
        invalid=(
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
