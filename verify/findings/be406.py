"""BE406: the claim to support attention backends."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE406",
        name="backend-claim-wrong",
        severity=Severity.ERROR,
        what="`_supports_attention_backend` is not set, or is set and no module calls the attention interface.",
        why="Both vLLM and SGLang take a model for their Transformers backend by this attribute, and refuse it "
        "without; claimed falsely, the model is taken and its attention is not.",
        use_instead="`_supports_attention_backend = True` on the PreTrainedModel class, once the attention goes "
        "through the interface.",
        fix_safety="No edit is offered: an edit is of a plan, and here it is the model's own files that change.",
        invalid=(
            Example(
                note="The claim is missing.",
                code="""\
class PreTrained(PreTrained):
    _supports_attention_backend = False
""",
            ),
        ),
        valid=(
            Example(
                note="It is made.",
                code="""\
class PreTrained(PreTrained):
    _supports_attention_backend = True
""",
            ),
        ),
    )
)
