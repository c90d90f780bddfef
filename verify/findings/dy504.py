"""DY504: a rank ended before its work was done."""

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity
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


def rank_failed(message: str, place: Place, *, kind: str, decided: bool, fault: Fault) -> Finding:
    """A rank raised an exception of class `kind`; `decided` where the plan is to blame for it."""
    return Finding(
        "DY504",
        Severity.ERROR if decided else Severity.UNDECIDED,
        message,
        place,
        why="the per-rank program cannot run" if decided else "nothing was compared",
        found=kind,
        needed="a run to the end on every rank",
        fault=fault,
    )


def not_compared(question: str, error: str) -> Finding:
    """The single-device model itself raises on a question, so that there is nothing to hold the ranks against."""
    return Finding(
        "DY504",
        Severity.WARNING,
        f"{question} was not compared: the single-device model itself raises {error.strip().splitlines()[0][:200]}",
        why="what one device cannot do has nothing to be compared with",
        fault=Fault.MODEL,
    )


def not_asked(question: str, why: str) -> Finding:
    """A question that the model raises and that was put to no one, with the reason."""
    return Finding(
        "DY504",
        Severity.UNDECIDED,
        f"{question} was not compared: {why}",
        why="a question that was not asked is not confirmed",
        fault=Fault.OURS,
    )


def training_refused(place: Place) -> Finding:
    """Autograd refuses an addition in place to the output of a sharded module."""
    return Finding(
        "DY504",
        Severity.ERROR,
        "training raises: the model adds in place to a sharded module's output, which autograd refuses",
        place,
        why="the client's hook gives a view made by a custom function; gradients were compared on a copy of it instead",
        found="a += b",
        needed="a = a + b",
        fault=Fault.MODEL,
    )


def no_rank_ran(complaint: str) -> Finding:
    """The launcher ended before any rank answered."""
    message = f"the launcher ended before any rank answered: {complaint}"
    return Finding("DY504", Severity.UNDECIDED, message, why="no rank ran", fault=Fault.OURS)


def never_met(waited: str) -> Finding:
    """The ranks started, and waited in vain for each other; `waited` says how long."""
    needed = "every rank in one group"
    why = "no rank ran: a peer never came, or the network keeps them apart"
    return Finding("DY504", Severity.UNDECIDED, waited, why=why, needed=needed, fault=Fault.OURS)


def no_small_model(error: str) -> Finding:
    """No twin was found that ranks could run."""
    why = "no model that is small enough to run"
    return Finding("DY504", Severity.UNDECIDED, error, why=why, fault=Fault.OURS)


def rank_died(death: str, last_words: str) -> Finding:
    """A rank ended before it answered; `last_words` is the end of its output, and may be empty."""
    said = f'; its last output: "{last_words}"' if last_words else ""
    why = f"a rank that is gone compares nothing{said}"
    return Finding("DY504", Severity.UNDECIDED, f"{death} before it answered", why=why, fault=Fault.OURS)
