"""PL106: a plan in a config that nobody reads."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="PL106",
        name="plan-not-read",
        severity=Severity.ERROR,
        what="The config has a `base_model_tp_plan`, and the base model is no `PreTrainedModel`; or a "
        "constructor does not call `post_init`.",
        why="Transformers reads the config's plan in the base model's own set-up, `post_init`. A plain module has none, and "
        "older modeling code does not call it, so every one of "
        "these entries is silently ignored, and the layers are replicated.",
        use_instead="The entries in the head class's `_tp_plan` with their full names, as `plan suggest` writes them; or a "
        "base model that is a `PreTrainedModel` and calls `post_init`.",
        fix_safety="No edit is offered: the entries move to another class.",
        invalid=(
            Example(
                note="A plain module as base model, with the plan in the config.",
                code="class Body(nn.Module): ...\n\n\nclass Head(PreTrainedModel):\n    base_model_prefix = 'body'",
            ),
        ),
        valid=(
            Example(
                note="A base model that reads its config's plan.",
                code="class Body(PreTrainedModel): ...\n\n\nclass Head(PreTrainedModel):\n    base_model_prefix = 'body'",
            ),
        ),
    )
)
