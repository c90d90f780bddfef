"""TP210: an op that no rule tells about."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="TP210",
        name="no-rule",
        severity=Severity.UNDECIDED,
        what="A sharded or partial value reaches an op that the rule table does not know.",
        why="Without a rule nothing follows, and nothing is never taken for replicated: the verdict is `not proved`.",
        use_instead="`plan verify MODEL --level run`, which needs no rule; and tell us the op.",
        fix_safety="No edit is offered: nothing is known to be wrong.",
        invalid=(
            Example(
                note="A kernel of somebody's own, on this rank's heads.",
                code="y = torch.ops.my_library.fused_scan(self.in_proj(x))  # in_proj is colwise",
            ),
        ),
        valid=(
            Example(
                note="The same op on a whole value needs no rule.",
                code="y = torch.ops.my_library.fused_scan(self.in_proj(x))  # in_proj has no entry",
            ),
        ),
    )
)
