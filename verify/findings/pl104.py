"""PL104: there is nothing to verify."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="PL104",
        name="no-plan",
        severity=Severity.ERROR,
        what="The plan has no entry for the axis that was asked for.",
        why="A degree above 1 without a plan is refused by Transformers; an engine that accepts it keeps "
        "the whole model on every rank.",
        use_instead="`plan suggest MODEL`, which writes one, or `--plan FILE`.",
        fix_safety="No edit is offered: a plan is more than an edit.",
        invalid=(
            Example(note="Transformers ships no plan for OPT.", model="opt"),
            Example(note="An empty plan.", model="llama", alone=True),
        ),
        valid=(Example(note="Transformers ships a plan for Llama.", model="llama"),),
    )
)
