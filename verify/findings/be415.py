"""BE415: whole heads where the client takes a part."""

from shardproof.planner.ir.findings import Finding, Place, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE415",
        name="attention-takes-local-heads",
        severity=Severity.ERROR,
        what="The client's attention takes its inputs as this rank's heads, and they are something else.",
        why="An engine's attention has its own number of heads, that of the config divided by the ranks, and "
        "reshapes what it is given to it without a check: whole query, key and value are read as more "
        "tokens of fewer heads, often silently. A plan that gathers them is right in Transformers and "
        "wrong there. A module that itself repeats its key-value heads before the call is read the same way.",
        use_instead="Query, key and value split by heads (colwise, without a gather), where the client can split them.",
        fix_safety="No edit is offered: `plan suggest --for` finds a plan that the client can read, or says why "
        "there is none.",
        invalid=(
            Example(
                note="The plan of Phi-3 gathers query, key and value, since they are one packed projection.",
                model="phi3",
                client="vllm",
            ),
            Example(
                note="JetMoE repeats its key-value heads before it calls the attention.",
                model="jetmoe",
                client="vllm",
            ),
        ),
        valid=(
            Example(
                note="Three projections, split by heads.",
                model="llama",
                client="vllm",
            ),
        ),
    )
)


def heads_not_local(tensor: str, place: Place, *, placement: str, whole: bool, client: str) -> Finding:
    """The client's attention receives a query, key or value (`tensor`) with other heads than it expects: this rank's heads, or
    all heads where `whole`.
    """
    expected = "all heads" if whole else "only this rank's heads"
    received = "all of them (R)" if placement == "R" else placement
    return Finding(
        "BE415",
        Severity.ERROR,
        f"{client} expects {expected} in the {tensor} of {place.module}, but receives {received}.",
        place,
        why="the client's attention reshapes what it is given to its own number of heads, without a check",
        found=placement,
        needed="R" if whole else "S(1): projections split by heads (colwise), without a gather",
    )
