"""BE412: a key that matches the beginning of another."""

from shardproof.planner.ir.findings import Finding, Place, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="BE412",
        name="key-shadowed",
        severity=Severity.ERROR,
        what="An earlier key matches the beginning of this module's path, and its style is taken instead.",
        why="Engines try keys as regular expressions that are not anchored at the end, in the order of the plan, and "
        "take the first that matches: `layers.*.mlp.c` decides for `layers.*.mlp.c_proj` too. Transformers looks keys up "
        "exactly, so the same plan is right there.",
        use_instead="The longer key before the shorter one.",
        fix_safety="No edit is offered: an edit changes a style, and here the order is at fault.",
        invalid=(
            Example(
                note="The key of the up projection matches every module of the layer whose path begins so.",
                model="starcoder2",
                plan=(
                    ("model.layers.*.mlp.c", "colwise"),
                    ("model.layers.*.mlp.c_fc", None),
                    ("model.layers.*.mlp.c_fc", "colwise"),
                    ("model.layers.*.mlp.c_proj", None),
                    ("model.layers.*.mlp.c_proj", "rowwise"),
                ),
                client="vllm@0.24",
            ),
        ),
        valid=(
            Example(
                note="Each key is the whole path.",
                model="starcoder2",
                client="vllm@0.24",
            ),
        ),
    )
)


def key_shadowed(entry: str, written: str, *, first: str, style: str, client: str, cite: str) -> Finding:
    """The key `first`, with `style`, is matched before the entry, whose style is `written`."""
    return Finding(
        "BE412",
        Severity.ERROR,
        f'"{first}" comes first and matches this module too, so it is "{style}" and not "{written}".',
        Place(entry=entry),
        why=f"{client} takes the first key that matches the beginning of a path ({cite})",
        found=f'"{style}"',
        needed=f'"{written}": the longer key before the shorter',
    )
