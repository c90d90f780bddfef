"""TP218: the output of a sharded layer, written to in place."""

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="TP218",
        name="output-written-in-place",
        severity=Severity.ERROR,
        what="The forward writes in place to the output of a module that the plan shards.",
        why="Transformers' hook hands the output on as a view that a custom autograd function made. Without gradients a "
        "write to it is allowed; in training autograd raises, on every rank and not on a single device.",
        use_instead="The op that is not in place: `relu(x)` instead of `relu(x, inplace=True)`, `x = x + y` instead of "
        "`x += y`.",
        fix_safety="No edit is offered: an edit is of a plan, and here it is the model's own code that changes.",
        invalid=(
            Example(
                note="The gate's output is overwritten.",
                code='"layers.*.mlp.gate_proj": "colwise",\n\nF.relu(self.gate_proj(x), inplace=True) * self.up_proj(x)',
            ),
        ),
        valid=(
            Example(
                note="A new tensor is made.",
                code='"layers.*.mlp.gate_proj": "colwise",\n\nF.relu(self.gate_proj(x)) * self.up_proj(x)',
            ),
        ),
    )
)


def output_written_in_place(module: str, op: str, place: Place) -> Finding:
    """An in-place op acts on the output of a module that a style hooks."""
    return Finding(
        "TP218",
        Severity.ERROR,
        f"{op} writes in place to the output of {module}, which raises on a rank where gradients are on",
        place,
        why="the client's hook gives a view that a custom autograd function made, and autograd refuses to change one in place",
        found="an in-place op on a sharded module's output",
        needed="the op that makes a new tensor",
        fault=Fault.MODEL,
    )
