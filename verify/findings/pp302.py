"""PP302: entries that do not stand in the order of execution."""

from collections.abc import Sequence

from shardproof.planner.ir.findings import Finding, Place, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="PP302",
        name="order-wrong",
        severity=Severity.ERROR,
        what="The pipeline plan's entries do not stand in the order in which the modules run.",
        why="Engines cut the list of entries into stages: what stands before the layers goes to the first "
        "rank, what stands after them to the last. A norm before the layers normalises the embedding.",
        use_instead="The order of execution, which is the order of the calls in the base model's forward.",
        fix_safety="No edit is offered: an order is no edit. `plan suggest MODEL` writes the entries in order.",
        invalid=(
            Example(
                note="The final norm stands before the layers.",
                code='base_model_pp_plan = {\n    "embed_tokens": (["input_ids"], ["inputs_embeds"]),\n'
                '    "norm": (["hidden_states"], ["hidden_states"]),\n'
                '    "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),\n}',
            ),
        ),
        valid=(
            Example(
                note="As they run.",
                code='base_model_pp_plan = {\n    "embed_tokens": (["input_ids"], ["inputs_embeds"]),\n'
                '    "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),\n'
                '    "norm": (["hidden_states"], ["hidden_states"]),\n}',
            ),
        ),
    )
)


def wrong_order(have: str, should: str, *, keys: Sequence[str], ran: Sequence[str]) -> Finding:
    """The key `have` stands where `should` runs; all `keys` as the plan has them and as they `ran`."""
    return Finding(
        "PP302",
        Severity.ERROR,
        f'"{have}" stands where "{should}" runs',
        Place(entry=have, module=have),
        why="stages run the keys in the order of the plan",
        found=", ".join(keys),
        needed=", ".join(ran),
    )
