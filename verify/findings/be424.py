"""BE424: a part of the contract that was not checked."""

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE424",
        name="contract-not-checked",
        severity=Severity.UNDECIDED,
        what="An experiment on the model or its processor could not be run here.",
        why="The contract is checked by running a small copy of the model, and the processor. Where no small copy is found, or a "
        "library is missing, nothing is known.",
        use_instead="Small sizes by --set; the missing library (Pillow for images, torchvision for some image processors).",
        fix_safety="No edit is offered: nothing was found.",
        invalid=(
            Example(
                note="A model whose forward does not run on tokens.",
                code="""\
class Model(Model):
    def forward(self, input_ids=None, position_ids=None, inputs_embeds=None, pixels=None, **kwargs):
        if pixels is None:
            raise ValueError("give pixels")
        return super().forward(input_ids, position_ids, inputs_embeds, **kwargs)
""",
            ),
        ),
        valid=(
            Example(
                note="It runs.",
                code="""\
class Model(Model):
    pass
""",
            ),
        ),
    )
)


def not_checked(what: str, reason: str) -> Finding:
    """`what` was not checked, for this reason."""
    return Finding(
        "BE424",
        Severity.UNDECIDED,
        f"Not checked: {what}.",
        Place(),
        why=reason,
        found="nothing",
        needed="a run of it",
        fault=Fault.OURS,
    )
