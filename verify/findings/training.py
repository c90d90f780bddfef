"""The findings of `plan verify --train`: what became of each question, whose fault it is, and what to write instead."""

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity


def another_way(
    code: str, question: str, failed: str, place: Place, *, first: str, instead: str, fault: Fault
) -> Finding:
    """What trainers do by themselves fails; `instead` was tried and is right."""
    return Finding(
        code,
        Severity.WARNING,
        f"{question}: {first} {failed}",
        place,
        why="the same plan gives the right answer another way",
        found=first,
        needed=instead,
        fault=fault,
    )


def no_way(code: str, question: str, failed: str, place: Place, *, first: str, tried: int, fault: Fault) -> Finding:
    """None of the ways that were tried gives what one device gives."""
    others = f"; {tried - 1} other {'way was' if tried == 2 else 'ways were'} tried and failed too" if tried > 1 else ""
    return Finding(
        code,
        Severity.ERROR,
        f"{question}: {first} {failed}{others}",
        place,
        why="one device can do it, and the ranks cannot",
        found=first,
        needed="what one device gives",
        fault=fault,
    )
