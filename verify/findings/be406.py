"""BE406: the claim to support attention backends."""

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
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
        fix_safety="No edit is offered: edits change a plan, and here the model's own files have to change.",
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


def claimed_without_attention(owner: str, place: Place, client: str, severity: Severity) -> Finding:
    """Class `owner` claims to support attention backends, and none of its modules calls the interface."""
    problem = "_supports_attention_backend is claimed, and no module calls the attention interface"
    needed = "the attention through ALL_ATTENTION_FUNCTIONS, or no claim"
    return _claim(f"{owner}: {problem}.", place, client, severity, claims=True, needed=needed)


def not_claimed(owner: str, place: Place, client: str, severity: Severity) -> Finding:
    """Class `owner` does not claim to support attention backends."""
    problem = "_supports_attention_backend is not set"
    needed = (
        "_supports_attention_backend = True on the PreTrainedModel class, once the attention goes through the interface"
    )
    return _claim(f"{owner}: {problem}.", place, client, severity, claims=False, needed=needed)


def _claim(message: str, place: Place, client: str, severity: Severity, *, claims: bool, needed: str) -> Finding:
    return Finding(
        "BE406",
        severity,
        message,
        place,
        why=f"{client} takes a model for its Transformers backend by this attribute",
        found=f"_supports_attention_backend = {claims}",
        needed=needed,
        fault=Fault.MODEL,
    )
