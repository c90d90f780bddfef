"""BE451: a client that computes something else."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE451",
        name="client-differs",
        severity=Severity.ERROR,
        what="The client's log-probabilities are not those of the single-device model.",
        why="The client loaded a small checkpoint with the plan, by its own code, and served the "
        "same tokens. At one rank it agreed.",
        use_instead="The plan of `plan suggest --for vllm`; `plan verify --for vllm` says where this one is wrong.",
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
