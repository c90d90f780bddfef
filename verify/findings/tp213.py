"""TP213: packed blocks cut as if they were one."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="TP213",
        name="packed-cut-across-blocks",
        severity=Severity.ERROR,
        what="A weight holds several blocks (gate and up; query, key and value), and the plan cuts it contiguously.",
        why="With blocks of sizes n_1, n_2, ... a contiguous part of (n_1 + n_2 + ...) / t rows is not "
        "the rank's part of every block: the first rank gets mostly gate, the last mostly up.",
        use_instead="`packed_colwise` for two equal blocks; `colwise_gather_output`, or no entry, for any other "
        "packing.",
        fix_safety="The edit to a packed style is offered where it was proved.",
        invalid=(
            Example(
                note="Phi-3 keeps gate and up in one weight.",
                model="phi3",
                plan=(("model.layers.*.mlp.gate_up_proj", "colwise"), ("model.layers.*.mlp.down_proj", "rowwise")),
                alone=True,
            ),
        ),
        valid=(
            Example(
                note="Two equal blocks, each cut on its own.",
                model="phi3",
                plan=(
                    ("model.layers.*.mlp.gate_up_proj", "packed_colwise"),
                    ("model.layers.*.mlp.down_proj", "rowwise"),
                ),
                alone=True,
            ),
        ),
    )
)
