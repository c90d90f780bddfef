"""BE417: code that the client rewrites."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE417",
        name="client-rewrites-code",
        severity=Severity.UNDECIDED,
        what="The client rewrites this module's forward in a way that is not modelled.",
        why="In vLLM a fuser cuts a packed projection with fewer key-value heads into unequal blocks and changes the "
        "sizes in the source. No placement says that, so nothing is claimed.",
        use_instead="A run in the client: `plan verify MODEL --level client --client vllm`.",
        fix_safety="No edit is offered: the plan is not what decides here.",
        invalid=(
            Example(
                note="GPT-BigCode splits one projection into query, key and value.",
                model="gpt_bigcode",
                client="vllm",
                alone=True,
            ),
        ),
        valid=(
            Example(
                note="Three projections.",
                model="llama",
                client="vllm",
            ),
        ),
    )
)
