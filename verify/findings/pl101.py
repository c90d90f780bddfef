"""PL101: a style that Transformers does not have."""

from collections.abc import Sequence

from shardproof.planner.ir.findings import Finding, Place, Severity
from shardproof.planner.ir.styles import STYLES
from shardproof.planner.transformers_facts.version import minor_text
from shardproof.verify.findings.catalogue import Example, Rule, register
from shardproof.verify.findings.wording import did_you_mean

register(
    Rule(
        code="PL101",
        name="unknown-style",
        severity=Severity.ERROR,
        what="An entry's style is none of the styles that Transformers registers.",
        why="A style is looked up by its exact name. Transformers refuses the plan; vLLM takes the module "
        "for replicated and says nothing.",
        use_instead="One of the names in `transformers.distributed.tensor_parallel.ALL_PARALLEL_STYLES`, letter by "
        "letter.",
        fix_safety="Offered is the nearest name, once the edited plan passes the checks of its form. Whether "
        "that style is the right one, the proof tells.",
        invalid=(
            Example(
                note="The style is called rowwise.",
                model="llama",
                plan=(("model.layers.*.mlp.down_proj", "row_wise"),),
            ),
        ),
        valid=(
            Example(
                note="The name as Transformers writes it.",
                model="llama",
                plan=(("model.layers.*.mlp.down_proj", "rowwise"),),
            ),
        ),
    )
)


def unknown_style(pattern: str, style: str, near: Sequence[str], *, known: Sequence[str]) -> Finding:
    """An entry with a style that the installed Transformers does not have.

    `known` are the styles that it has, `near` those of them with a like name, nearest first.
    """
    # Another version has it: the name is right, and the version is the reason.
    version = f" {minor_text()}" if style in STYLES else ""
    return Finding(
        "PL101",
        Severity.ERROR,
        f'"{style}" is not a style of Transformers{version}{did_you_mean(near)}',
        Place(entry=pattern),
        why="a style is looked up by its exact name",
        found=f'"{style}"',
        needed=f'"{near[0]}"' if near else f"one of {', '.join(known)}",
    )
