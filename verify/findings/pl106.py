"""PL106: a plan in a config that nobody reads."""

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
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


def post_init_not_called(kind: str, place: Place) -> Finding:
    """The constructor of class `kind` does not end with `self.post_init()`, which reads the plan."""
    return Finding(
        "PL106",
        Severity.ERROR,
        f"No plan of {kind} is ever read: its constructor does not call self.post_init().",
        place,
        why="plans are read in post_init, and a model without one is loaded whole, or not at all",
        found=f"{kind}.__init__ without post_init",
        needed=f"self.post_init() at the end of {kind}.__init__, and of its base model's",
        fault=Fault.MODEL,
    )


def base_is_no_pretrained_model(owner: str, prefix: str, inner: str) -> Finding:
    """The base model of class `owner`, at `prefix`, is of a class (`inner`) that reads no plan."""
    return Finding(
        "PL106",
        Severity.ERROR,
        f"base_model_tp_plan is never read: {owner}.{prefix} is a {inner}, which is no PreTrainedModel.",
        Place(module=prefix),
        why="the config's plan is read by the base model as it is made, and only a PreTrainedModel does so",
        found=f"a {inner}",
        needed=f"the entries in {owner}._tp_plan with their full names, or a PreTrainedModel",
    )
