"""BE413: a key that matches nothing."""

from shardproof.planner.ir.findings import Finding, Place, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE413",
        name="key-not-seen-by-client",
        severity=Severity.ERROR,
        what="A key of the plan matches no module, as this client matches keys.",
        why="A key that matches nothing is dropped without a word, and the module that it was meant for is replicated on every "
        "rank. Engines put `model.` before each key of a base model's plan and match it from the beginning, so a key with a "
        "prefix of its own never matches.",
        use_instead="Keys relative to the base model: `layers.*.self_attn.q_proj`.",
        fix_safety="No edit is offered: which module was meant is not known.",
        invalid=(
            Example(
                note="The name of the base model is put before it once more.",
                model="llama",
                plan=(("model.model.layers.*.mlp.up_proj", "colwise"),),
                client="vllm",
            ),
        ),
        valid=(
            Example(
                note="The plan of Llama.",
                model="llama",
                client="vllm",
            ),
        ),
    )
)


def key_not_seen(key: str, entry: str, *, client: str, cite: str, severity: Severity) -> Finding:
    """A key (as the plan has it) that matches no path as the client writes paths."""
    return Finding(
        "BE413",
        severity,
        f'{client} finds no module for "{key}", and drops it.',
        Place(entry=entry),
        why=f"keys get the prefix model. and are matched from the beginning of a path ({cite})",
        found="no module",
        needed="a key relative to the base model, such as layers.*.self_attn.q_proj",
    )
