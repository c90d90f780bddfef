"""BE416: an entry that the client does not read."""

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE416",
        name="entry-not-read",
        severity=Severity.WARNING,
        what="The client decides this module without the plan, and otherwise than the entry says.",
        why="Since 0.25 vLLM fuses query, key and value, and gate and up, before it asks the plan; a wrong "
        "entry there does no harm in vLLM, and may in every other client.",
        use_instead="The style that the client takes, if the other clients can take it too.",
        fix_safety="No edit is offered: what is right for the other clients is for their own proofs.",
        invalid=(
            Example(
                note="vLLM fuses the three projections, whatever the plan says.",
                model="llama",
                plan=(("model.layers.*.self_attn.q_proj", "colwise_gather_output"),),
                client="vllm",
            ),
        ),
        valid=(
            Example(
                note="The plan says what the client does.",
                model="llama",
                client="vllm",
            ),
        ),
    )
)


def entry_not_read(entry: str, *, written: str, style: str, client: str) -> Finding:
    """The client gives a module `style` by itself, where the plan has `written`."""
    return Finding(
        "BE416",
        Severity.WARNING,
        f'{client} decides this module without the plan: it is "{style}", and "{written}" is not read.',
        Place(entry=entry),
        why="projections that fuse, the vocabulary table and the head are handled before the plan is asked",
        found=f'"{written}"',
        needed=f'"{style}", for the clients that do read it',
        fault=Fault.CLIENT,
    )
