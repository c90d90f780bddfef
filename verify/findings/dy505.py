"""DY505: the ranks did not finish in time."""

from collections.abc import Mapping

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
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


def ranks_waited(stages: Mapping[int, str], place: Place, error: str) -> Finding:
    """Every rank that answered waited for the others in a collective; `stages` says, rank by rank, at which step of the run."""
    ranks = " and ".join(str(rank) for rank in sorted(stages))
    return Finding(
        "DY505",
        Severity.UNDECIDED,
        f"in {stages[min(stages)]}, rank {ranks} waited in a collective that did not complete: {error}",
        place,
        why="ranks that issue different collectives wait for each other; so do ranks of which one is very slow",
        found=", ".join(f"rank {rank} in {stage}" for rank, stage in sorted(stages.items())),
        needed="the same collectives, in the same order, on every rank",
        fault=Fault.OURS,
    )


def no_answer(ranks: str, allowed: str) -> Finding:
    """Ranks (as a list to print) gave no answer in the time allowed."""
    message = f"no answer from rank {ranks} in {allowed}"
    return Finding("DY505", Severity.UNDECIDED, message, why="nothing was compared in time", fault=Fault.OURS)
