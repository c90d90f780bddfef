"""TP221: loading that does not give what the checkpoint holds."""

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="TP221",
        name="loaded-weights-are-lost",
        severity=Severity.ERROR,
        what="After `from_pretrained` a parameter does not hold what the checkpoint says, on one device too.",
        why="Transformers calls `_init_weights` after loading for every module with a parameter or buffer that the checkpoint "
        "lacks, such as a buffer that is not persistent. One that writes through `.data`, or to parameters of other modules, "
        "overwrites what was loaded. No entry of a plan is to blame.",
        use_instead="An `_init_weights` that fills the module's own parameters by `torch.nn.init` functions, which Transformers "
        "keeps from loaded tensors; or a persistent buffer.",
        fix_safety="No edit is offered: an edit is of a plan, and here it is the model's own code that changes.",
        invalid=(
            Example(
                note="A parameter of a child is rewritten, past the guard of loaded tensors.",
                code="def _init_weights(self, module):\n"
                "    for name, parameter in module.named_parameters():\n"
                '        if name == "c_proj.weight":\n'
                "            parameter.data.normal_(mean=0.0, std=0.02)",
            ),
        ),
        valid=(
            Example(
                note="The module's own weight, by an init function.",
                code="def _init_weights(self, module):\n"
                "    if isinstance(module, nn.Linear):\n"
                "        nn.init.normal_(module.weight, std=0.02)",
            ),
        ),
    )
)


def weights_are_lost(names: tuple[str, ...]) -> Finding:
    """Parameters that `_init_weights` rewrites after they were loaded."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return Finding(
        "TP221",
        Severity.ERROR,
        f"loaded on one device, {names[0]}{more} does not hold what the checkpoint says",
        Place(None, names[0].rpartition(".")[0]),
        why="`_init_weights`, which Transformers calls after loading, writes to it",
        found="other numbers",
        needed="an _init_weights that leaves loaded parameters alone",
        fault=Fault.MODEL,
    )
