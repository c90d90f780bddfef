"""TP201: a degree that does not divide."""

from shardproof.planner.ir.findings import Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="TP201",
        name="dim-does-not-divide",
        severity=Severity.ERROR,
        what="A dim that the plan shards does not divide into as many equal parts as there are ranks.",
        why="Heads, key-value heads and packed blocks are whole things: n of them give each of t ranks n "
        "/ t, and a remainder puts a cut inside one. The forward then raises, or pairs a query with "
        "another head's key.",
        use_instead="A degree that `plan suggest MODEL` lists as legal, or a plan that leaves this part whole.",
        fix_safety="No edit is offered: it is the degree that does not fit.",
        invalid=(Example(note="32 heads on 3 ranks.", model="llama", degree=3),),
        valid=(Example(note="32 heads on 4 ranks.", model="llama", degree=4),),
    )
)
