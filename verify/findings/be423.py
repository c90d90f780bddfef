"""BE423: a plan where nobody reads it."""

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE423",
        name="plan-attribute-misplaced",
        severity=Severity.ERROR,
        what="A plan attribute stands on a class that is never asked for it.",
        why="`base_model_tp_plan` and its fellows are read from the config of the base model, `_tp_plan` and "
        "`_pp_plan` from the model class. Elsewhere they are silently without effect.",
        use_instead="The attribute on the class that is named.",
        fix_safety="No edit is offered: edits change a plan, and here the model's own files have to change.",
        invalid=(
            Example(
                note="The config's plan stands on the model.",
                code="""\
class PreTrained(PreTrained):
    base_model_tp_plan = {"layers.*.self_attn.q_proj": "colwise"}
""",
            ),
        ),
        valid=(
            Example(
                note="It stands nowhere.",
                code="""\
class PreTrained(PreTrained):
    pass
""",
            ),
        ),
    )
)


def attribute_misplaced(owner: str, attribute: str, place: Place, needed: str) -> Finding:
    """A plan attribute on a class, `owner`, that is never asked for it."""
    return Finding(
        "BE423",
        Severity.ERROR,
        f"{owner} has {attribute}, which is never read there.",
        place,
        why="a config gives the plan of its base model, a head class the plan of the head",
        found=f"{attribute} on {owner}",
        needed=needed,
        fault=Fault.MODEL,
    )
