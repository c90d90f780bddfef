"""BE414: heads that the client cannot divide."""

from shardproof.planner.ir.findings import Severity
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
        "without a check. Engines refuse features that do not come out even, which Transformers deals out unevenly, "
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
