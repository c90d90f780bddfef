"""BE411: a style, or a plan, that the client cannot read."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE411",
        name="style-not-in-dialect",
        severity=Severity.ERROR,
        what="An entry has a style that the client does not know, or the client is given no plan that it can read.",
        why="Every client has its own table of styles. SGLang, DeepSpeed and Transformers refuse the whole "
        "plan for one unknown name; vLLM takes the layer for replicated and says nothing, so memory is "
        "lost, and where its neighbours are split the result is wrong. No name for a gathered output or a"
        " split input is valid in both current vLLM and current SGLang.",
        use_instead="A style of that client's table, or the plan that `plan suggest --for CLIENT` writes.",
        fix_safety="No edit is offered: the right style follows from the model, and `plan suggest --for` finds it.",
        invalid=(
            Example(
                note="SGLang knows no colwise_gather_output.",
                model="llama",
                plan=(("model.layers.*.self_attn.q_proj", "colwise_gather_output"),),
                client="sglang",
            ),
        ),
        valid=(
            Example(
                note="The plan of Llama has only styles that SGLang has.",
                model="llama",
                client="sglang",
            ),
        ),
    )
)
