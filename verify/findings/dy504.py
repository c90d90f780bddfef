"""DY504: a rank ended before its work was done."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="DY504",
        name="rank-failed",
        severity=Severity.ERROR,
        what="A rank raised, or its process ended: killed, out of memory, a missing library.",
        why="The others wait for it in a collective; they are ended too, so that nothing hangs. A rank "
        "that raised on shapes refutes the plan; a rank that was killed decides nothing.",
        use_instead="The failing rank's own error, which stands in the finding, says what to do.",
        fix_safety="An edit is offered where a run with it agreed; else the error has to be read first.",
        invalid=(
            Example(
                note="Half of the heads on each of two ranks, and a view for all of them.",
                code="RuntimeError: shape '[1, 8, 32, 128]' is invalid for input of size 16384",
            ),
        ),
        valid=(Example(note="The view takes what there is.", code="query.view(batch, length, -1, self.head_dim)"),),
    )
)
