"""TP211: the two programs are not the same ops."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="TP211",
        name="programs-diverge",
        severity=Severity.UNDECIDED,
        what="From some op on, a rank runs another sequence of ops than the single-device model.",
        why="The proof relates the two programs op by op. Where code branches on a local size there is no "
        "counterpart to relate to.",
        use_instead="Modeling code that does not branch on the size of a sharded dim; or `--level run`, which "
        "compares values.",
        fix_safety="No edit is offered: it is the modeling code that branches.",
        invalid=(
            Example(
                note="With two key-value heads, one rank of two sees one.",
                code="if key.shape[1] == 1:\n    return multi_query(query, key, value)",
            ),
        ),
        valid=(
            Example(
                note="The branch is on the config, which all ranks share.",
                code="if self.config.num_key_value_heads == 1:\n    return multi_query(query, key, value)",
            ),
        ),
    )
)
