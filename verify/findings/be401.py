"""BE401: a keyword that does not arrive at the attention."""

from collections.abc import Sequence

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE401",
        name="keywords-dropped",
        severity=Severity.ERROR,
        what="A forward between the base model and the attention does not take `**kwargs`, throws them away, "
        "or does not pass them on.",
        why="Engines hand their attention what it needs (`attention_instances`, `forward_batch`, a cache) as "
        "keywords of the base model. One level that drops them, in a signature, a loop, a helper or a "
        "decorator, and the attention runs without its cache, or fails far from the cause. vLLM 0.32 keeps its "
        "attention on the module and needs no keywords: there a lost one is a warning.",
        use_instead="`**kwargs` in every signature on the way, and `**kwargs` in every call.",
        fix_safety="No edit is offered: edits change a plan, and here the model's own files have to change.",
        invalid=(
            Example(
                note="The layer takes them, and calls its attention without.",
                code="""\
class Layer(Layer):
    def forward(self, hidden_states, **kwargs):
        return hidden_states + self.self_attn(hidden_states)
""",
            ),
        ),
        valid=(
            Example(
                note="They arrive.",
                code="""\
class Layer(Layer):
    def forward(self, hidden_states, **kwargs):
        return hidden_states + self.self_attn(hidden_states, **kwargs)
""",
            ),
        ),
    )
)


def keywords_dropped(
    function: str,
    place: Place,
    *,
    keywords: Sequence[str],
    problem: str,
    needed: str,
    client: str,
    severity: Severity = Severity.ERROR,
) -> Finding:
    """A function on the way from the base model to the attention does not pass the client's keywords on."""
    return Finding(
        "BE401",
        severity,
        f"{function} drops the keywords on the way to the attention: {problem}.",
        place,
        why=f"{client} gives its attention {', '.join(keywords)} as keywords of the base model"
        if severity is Severity.ERROR
        else f"{client} does not need {', '.join(keywords)} there today, and asks models to pass keywords on",
        found=problem,
        needed=needed,
        fault=Fault.MODEL,
    )
