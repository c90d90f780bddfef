"""The result of a command: a text and an exit code, or an error of one sentence."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from shardproof.planner.ir.errors import ShardproofError
from shardproof.planner.ir.findings import Verdict

EXIT_CODES = {Verdict.PROVED: 0, Verdict.CONFIRMED: 0, Verdict.REFUTED: 1, Verdict.NOT_PROVED: 3}
MISUSE, UNDECIDED, INTERRUPTED = 2, 3, 130
WORST_FIRST = (1, MISUSE, UNDECIDED)
"""Of several models the worst decides: refuted, then misuse, then not decided."""


def worst(codes: Iterable[int]) -> int:
    """The worst of several exit codes; 0 where all are 0."""
    have = set(codes)
    return next((code for code in WORST_FIRST if code in have), 0)


class ReportFormat(StrEnum):
    TEXT = "text"
    JSON = "json"
    SARIF = "sarif"
    HTML = "html"
    JUNIT = "junit"
    """JUnit XML, a test case for each level of each model."""
    GITHUB = "github"
    """Workflow commands of GitHub, which become notes at the source lines."""


class MisuseError(ShardproofError, ValueError):
    """The arguments are wrong; the message is one sentence: what, where, what to do."""


class UndecidedError(ShardproofError, RuntimeError):
    """The arguments are right, but no verdict could be reached; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class CommandResult:
    """The text for stdout, and the exit code."""

    text: str
    code: int
