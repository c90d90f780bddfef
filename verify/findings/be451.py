"""BE451: a client that computes something else."""

from shardproof.planner.ir.findings import Fault, Finding, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE451",
        name="client-differs",
        severity=Severity.ERROR,
        what="The client's log-probabilities are not those of the single-device model.",
        why="The client loaded a small checkpoint with the plan, by its own code, and served the "
        "same tokens. At one rank it agreed.",
        use_instead="The plan of `plan suggest --for CLIENT`; `plan verify --for CLIENT` says where this one is wrong.",
        fix_safety="No edit is offered: the proof in the client's dialect names the entry, and tries edits.",
        invalid=(
            Example(
                note="Whole heads are read as this rank's.",
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


def answers_differ(
    client: str, where: str, difference: float | None, *, limit: float, severity: Severity, fault: Fault
) -> Finding:
    """The client's log-probabilities differ from the single-device model's by more than `limit`; both in nats."""
    return Finding(
        "BE451",
        severity,
        f"{client} differs {where} from the single-device model by {difference:.2g} (of log-probabilities, in nats).",
        why="the same weights and tokens give the same answer",
        found=f"{difference:.2g}",
        needed=f"at most {limit:g}",
        fault=fault,
    )
