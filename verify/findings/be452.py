"""BE452: a client that fails."""

from shardproof.planner.ir.findings import Fault, Finding, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE452",
        name="client-fails",
        severity=Severity.ERROR,
        what="The client raises, or does not answer, with this plan at this layout.",
        why="The client loaded a small checkpoint with the plan, by its own code. At one rank it answered.",
        use_instead="The plan of `plan suggest --for CLIENT`; `plan check --backend CLIENT` says what the client cannot take.",
        fix_safety="No edit is offered: the proof in the client's dialect names the entry, and tries edits.",
        invalid=(
            Example(
                note="Packed query, key and value are gathered, and do not fit the attention's heads.",
                code="""\
plan verify phi3 --level client --client vllm --tp 2
""",
            ),
        ),
        valid=(
            Example(
                note="The same plan is served rightly.",
                code="""\
plan verify llama --level client --client vllm --tp 2 --pp 2
""",
            ),
        ),
    )
)


def client_fails(client: str, where: str, error: str, *, severity: Severity, fault: Fault) -> Finding:
    """The client raised `error`; `where` says at which layout, and may be empty."""
    return Finding(
        "BE452",
        severity,
        f"{' '.join(filter(None, (client, 'fails', where)))}: {' '.join(error.split())[:300]}",
        why="the client's own code loaded the checkpoint with the plan",
        found="an error",
        needed="an answer",
        fault=fault,
    )
