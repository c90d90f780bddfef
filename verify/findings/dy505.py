"""DY505: the ranks did not finish in time."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="DY505",
        name="rank-timeout",
        severity=Severity.UNDECIDED,
        what="The run did not end within its time limit, and was ended.",
        why="Ranks that issue different collectives wait for each other for ever; a slow machine looks "
        "the same from outside. So nothing is decided.",
        use_instead="A higher `--timeout`; if it ends there again, `--level proof`, which needs no ranks.",
        fix_safety="No edit is offered: the cause is not known.",
        invalid=(
            Example(
                note="Only one rank calls the collective.",
                code="if rank == 0:\n    torch.distributed.all_reduce(x)",
            ),
        ),
        valid=(Example(note="All ranks call it.", code="torch.distributed.all_reduce(x)"),),
    )
)
