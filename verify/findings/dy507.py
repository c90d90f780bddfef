"""DY507: the proof and the run contradict each other."""

from collections.abc import Iterable

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
from shardproof.verify.findings.catalogue import Example, Rule, register

register(
    Rule(
        code="DY507",
        name="proved-but-refuted",
        severity=Severity.ERROR,
        what="The proof says `proved`, and real ranks give another result. One of the two is wrong, and both are ours.",
        why="A proof holds for all weights, so no run may contradict it. This is a bug in shardproof, "
        "whatever the plan is worth.",
        use_instead="The run's result until it is settled, and a report to us with the command, which is enough "
        "to repeat it.",
        fix_safety="No edit is offered: the plan may be right.",
        invalid=(
            Example(
                note="Two verdicts that cannot both hold.", code="proof: proved\nrun: refuted (DY501 output-differs)"
            ),
        ),
        valid=(Example(note="They agree.", code="proof: proved\nrun: confirmed"),),
    )
)


def levels_contradict(place: Place, codes: Iterable[str]) -> Finding:
    """The proof holds, and the run refutes it with findings of these codes."""
    return Finding(
        "DY507",
        Severity.ERROR,
        "The proof says `proved` and the run refuted it: this is a bug in shardproof; please report this command.",
        place,
        why="a proof holds for all weights, so no run may contradict it",
        found=f"proof: proved; run: refuted ({', '.join(codes)})",
        needed="two levels that agree",
        fault=Fault.OURS,
    )
