"""PL102: an entry for something that the model does not have."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

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
