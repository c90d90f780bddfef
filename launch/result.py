"""The result of a command: a text and an exit code, or an error of one sentence."""

from dataclasses import dataclass
from enum import StrEnum

from shardproof.planner.ir.errors import ShardproofError
from shardproof.planner.ir.findings import Verdict

EXIT_CODES = {Verdict.PROVED: 0, Verdict.CONFIRMED: 0, Verdict.REFUTED: 1, Verdict.NOT_PROVED: 3}
MISUSE, UNDECIDED, INTERRUPTED = 2, 3, 130


class ReportFormat(StrEnum):
    TEXT = "text"
    JSON = "json"
    SARIF = "sarif"
    HTML = "html"


class MisuseError(ShardproofError, ValueError):
    """The arguments are wrong; the message is one sentence: what, where, what to do."""


class UndecidedError(ShardproofError, RuntimeError):
    """The arguments are right, but no verdict could be reached; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class CommandResult:
    """The text for stdout, and the exit code."""

    text: str
    code: int
