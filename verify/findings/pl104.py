"""PL104: there is nothing to verify."""

from shardproof.planner.ir.findings import Fault, Finding, Severity
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


def no_tensor_plan(owner: str) -> Finding:
    """A tensor-parallel degree above 1, and no entry for the model of class `owner`."""
    return Finding(
        "PL104",
        Severity.ERROR,
        f"There is no tensor-parallel plan for {owner}, so there is nothing to verify.",
        why="without entries every rank holds the whole model, and Transformers refuses to start",
        found="no entry",
        needed="a plan: `plan suggest` writes one, --plan FILE gives one",
    )


def no_expert_plan(ranks: int) -> Finding:
    """An expert-parallel degree above 1, and no entry."""
    return Finding(
        "PL104",
        Severity.ERROR,
        f"the plan has no expert-parallel entry, and {ranks} ranks are to share the experts",
        why="without one every rank holds every expert, or the tensor-parallel part of each",
        found="no entry",
        needed="base_model_ep_plan, or no --ep",
    )


def no_pipeline_plan() -> Finding:
    """Several stages, and no entry."""
    return Finding(
        "PL104",
        Severity.ERROR,
        "there is no pipeline plan, so there is nothing to verify",
        why="without one, no module belongs to any stage",
        found="no base_model_pp_plan",
        needed="the plan that `plan suggest` prints",
    )


def nothing_to_run(kind: str) -> Finding:
    """Ranks to run on, and no entry for this kind (tensor, expert) of parallelism."""
    return Finding("PL104", Severity.UNDECIDED, f"the plan has no {kind}-parallel entry: there is nothing to run")


def nothing_to_prove(title: str) -> Finding:
    """The inference gave no entry. Not refuted: there is no plan that could be wrong."""
    return Finding(
        "PL104",
        Severity.UNDECIDED,
        f"No tensor-parallel entry was found for {title}, so there is nothing to prove.",
        why="no dim of this model was shown to be safe to shard",
        found="no entry",
        needed="at least one group of dims that no op mixes",
        fault=Fault.MODEL,
    )
