"""BE409: a head that the engine does not run."""

from collections.abc import Sequence

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
from shardproof.planner.ir.readable_text import listing
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE409",
        name="head-not-run",
        severity=Severity.ERROR,
        what="The forward of the head class does more to the hidden states than one projection.",
        why="The engine (vLLM) runs the base model alone and projects its result itself. Of what the head's forward does "
        "besides it knows "
        "`logit_scale` and `final_logit_softcapping`, from the config; a norm, a second layer or another scale is left out, "
        "silently.",
        use_instead="`lm_head` alone; a scale as `logit_scale`, a soft-cap as `final_logit_softcapping`; anything else in the "
        "base model.",
        fix_safety="No edit is offered: edits change a plan, and here the model's own files have to change.",
        invalid=(
            Example(
                note="The logits are divided by a field of another name.",
                code="""\
class Head(Head):
    def forward(self, input_ids, **kwargs):
        return self.lm_head(self.model(input_ids, **kwargs)[0]) / 8.0
""",
            ),
        ),
        valid=(
            Example(
                note="One projection.",
                code="""\
class Head(Head):
    def forward(self, input_ids, **kwargs):
        return self.lm_head(self.model(input_ids, **kwargs)[0])
""",
            ),
        ),
    )
)


def logit_scale_is_none(config: str, client: str) -> Finding:
    """The config, of this class, has the field `logit_scale`, and no number in it."""
    problem, why = "its logit_scale is None", f"{client} multiplies the logits by that field where there is one"
    return _head(config, Place(), problem=problem, why=why, needed="a number, or no such field")


def head_computes(owner: str, target: str, place: Place, *, client: str, factors: Sequence[str]) -> Finding:
    """The forward of class `owner` runs an op (`target`) on the hidden states or logits that the engine does not run, which knows
    the `factors` of the config alone.
    """
    problem = f"its forward runs {target} between the base model and the logits"
    known = f", and knows {listing(factors)} of the config" if factors else ""
    why = f"{client} does not run that forward: it projects{known}"
    needed = "lm_head alone, or the config fields that the engine reads"
    return _head(owner, place, problem=problem, why=why, needed=needed)


def _head(owner: str, place: Place, *, problem: str, why: str, needed: str) -> Finding:
    return Finding(
        "BE409", Severity.ERROR, f"{owner}: {problem}.", place, why, found=problem, needed=needed, fault=Fault.MODEL
    )
