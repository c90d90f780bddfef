"""PP301: a pipeline entry for a module that is not there, or none for one that is."""

from shardproof.planner.ir.findings import Finding, Place, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="PP301",
        name="module-missing",
        severity=Severity.ERROR,
        what="The pipeline plan names a module that the base model does not have, or leaves out one that "
        "its forward calls.",
        why="A stage holds what its entries name. A module outside the plan runs on every stage, or on "
        "none; an entry for nothing makes the engine raise when it builds the stage.",
        use_instead="One entry for each child module that the base model's forward calls, and no other.",
        fix_safety="No edit is offered: `plan suggest MODEL` writes the whole pipeline plan.",
        invalid=(
            Example(
                note="The final norm is missing, and runs on every stage.",
                code='base_model_pp_plan = {\n    "embed_tokens": (["input_ids"], ["inputs_embeds"]),\n'
                '    "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),\n}',
            ),
        ),
        valid=(
            Example(
                note="Embedding, layers, norm.",
                code='base_model_pp_plan = {\n    "embed_tokens": (["input_ids"], ["inputs_embeds"]),\n'
                '    "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),\n'
                '    "norm": (["hidden_states"], ["hidden_states"]),\n}',
            ),
        ),
    )
)


def module_missing(path: str, near: str | None) -> Finding:
    """A key that names no module; `near` is a module with the same last name."""
    return Finding(
        "PP301",
        Severity.ERROR,
        f'the pipeline plan names "{path}", which is no module',
        Place(entry=path),
        why="a key names a module of the base model, or of the head class",
        found=path,
        needed=near or "a module that exists",
    )
