"""BE416: an entry that the client does not read."""

from collections.abc import Sequence

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


def plan_not_read(client: str, why: str, *, cite: str) -> Finding:
    """The client has a plan of its own for the class, and reads none; what it does by that is judged."""
    return Finding(
        "BE416",
        Severity.WARNING,
        f"{client} does not read the model's plan: {why}.",
        Place(),
        why=f"the class is looked up in the client's own table first ({cite}); its plan there is what is proved here",
        found="a class that the client knows",
        needed="the plan as `tp_plan` of its recipe, which goes before its own",
        fault=Fault.CLIENT,
    )


def plan_replaced(client: str, why: str, entry: str, *, cite: str, styles: Sequence[str]) -> Finding:
    """The client cannot use the plan, and takes one for Llama's names in its place; what it does by that is judged."""
    return Finding(
        "BE416",
        Severity.WARNING,
        f"{client} replaces the whole plan by one for Llama's names: {why}.",
        Place(entry=entry or None),
        why=f"modules of other names stay whole on every rank ({cite}); that layout is what is proved here",
        found=why,
        needed=f"a plan with no style but {', '.join(styles)}",
        fault=Fault.CLIENT,
    )
