"""TP203: a local value that is no part of the whole one."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="TP203",
        name="wrong-local-value",
        severity=Severity.ERROR,
        what="An op runs on the local tensors, and what it gives is not the rank's part of the global result.",
        why="Let f be the op and x_r rank r's part of x. The plan needs f(x_r) = f(x)_r; here the op "
        "mixes values along the sharded dim (a softmax, a mean, a norm), or reads at an offset that "
        "belongs to the whole tensor.",
        use_instead="A style that gathers before this op, or no entry for the module that feeds it.",
        fix_safety="An edit is offered where it was proved.",
        invalid=(
            Example(
                note="Gate and up lie one after the other in one weight; chunk(2) on a contiguous part takes half "
                "of the gate for the gate and the rest of it for up.",
                code='"layers.*.mlp.gate_up_proj": "colwise",\n\ngate, up = self.gate_up_proj(x).chunk(2, dim=-1)',
            ),
        ),
        valid=(
            Example(
                note="Each rank has its part of either block.",
                code='"layers.*.mlp.gate_up_proj": "packed_colwise",\n'
                "\n"
                "gate, up = self.gate_up_proj(x).chunk(2, dim=-1)",
            ),
        ),
    )
)
