"""PL102: an entry for something that the model does not have."""

from collections.abc import Sequence

from shardproof.planner.ir.findings import Finding, Place, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register
from shardproof.verify.findings.wording import did_you_mean

register(
    Rule(
        code="PL102",
        name="key-matches-nothing",
        severity=Severity.ERROR,
        what="An entry's key names no module and no parameter of the model.",
        why="Transformers replaces layer numbers by `*` and then looks a key up exactly: no glob, no "
        "regular expression. A key that matches nothing leaves the module that was meant whole on "
        "every rank. In a plan that is given it raises; in the model's own plan, where one plan "
        "serves several configs, it is a warning, here too.",
        use_instead="The module's path as `model.named_modules()` prints it, `*` for the number of a layer. Keys of "
        "`base_model_tp_plan` start inside the base model, keys of `tp_plan` at the head model.",
        fix_safety="Offered is the nearest path that has no entry yet, once the edited plan passes the checks of "
        "its form. Whether it is the module that was meant, the proof tells.",
        invalid=(
            Example(
                note="The module is called down_proj.",
                model="llama",
                plan=(("model.layers.*.mlp.down_proj", None), ("model.layers.*.mlp.down_projection", "rowwise")),
            ),
            Example(
                note="A star stands for the number of a layer, not for any name.",
                model="llama",
                plan=(("model.layers.*.mlp.*", "colwise"),),
            ),
        ),
        valid=(
            Example(
                note="The path of the module.",
                model="llama",
                plan=(("model.layers.*.mlp.down_proj", "rowwise"),),
            ),
        ),
    )
)


def matches_nothing(pattern: str, owner: str, near: Sequence[str], *, carried: bool) -> Finding:
    """A key without a match in the model of class `owner`; only a warning for a key that the model itself carries."""
    message = f'The key "{pattern}" matches no module and no parameter of {owner}'
    return Finding(
        "PL102",
        Severity.WARNING if carried else Severity.ERROR,
        f"{message}{' under this config.' if carried else did_you_mean(near)}",
        Place(entry=pattern),
        why="a key is looked up exactly, with * for the number of a layer, so this entry is never applied",
        found="no match",
        needed=f'a path of the model, such as "{near[0]}"' if near else "a path as model.named_modules() prints it",
    )
