"""Progress and messages on stderr, and the result on stdout, which holds nothing else."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass

from shardproof.launch.result import UndecidedError
from shardproof.planner.ir.readable_text import visible


def say(sentence: str) -> None:
    """Print one line on stderr; a stderr that is closed is no error."""
    with suppress(OSError, ValueError, AttributeError):
        print(f"plan: {visible(sentence)}", file=sys.stderr, flush=True)


def print_aside(text: str) -> None:
    """Print lines on stderr that are not the result; a stderr that is closed or full is no error."""
    with suppress(OSError, ValueError, AttributeError):
        print(visible(text), file=sys.stderr, flush=True)


@contextmanager
def only_results_on_stdout(*, debug: bool = False) -> Iterator[None]:
    """Send what libraries and a model's own code print to stderr, and suppress their logs, warnings and progress bars.

    The environment variables hold for this process and the ranks that it starts; what the user has set stays.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    with redirect_stdout(sys.stderr), warnings.catch_warnings():
        if not debug:
            warnings.simplefilter("ignore")
        yield


_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # Nothing is fetched unless asked, and no command asks.
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def print_result(text: str) -> None:
    """Print the result on stdout. A reader that closed the pipe (`plan ... | head`) is no error.

    Raises:
        UndecidedError: the result cannot be written, so the caller does not get it.
    """
    if sys.stdout is None:
        raise UndecidedError("the result could not be written: stdout is closed.")
    try:
        print(visible(text))
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes stdout once more at exit; that must not fail either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise UndecidedError(f"the result could not be written to stdout: {error.strerror}.") from error


@dataclass(frozen=True, slots=True)
class Progress:
    """Reports each step: a spinner with the time on a terminal, else one line on stderr; nothing if `quiet`."""

    quiet: bool = False

    def note(self, sentence: str) -> None:
        """Print a note that is not part of the result."""
        if not self.quiet:
            say(sentence)

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Show a step while the block runs."""
        if self.quiet:
            yield
        elif not sys.stderr.isatty():
            say(f"{text} ...")
            yield
        else:
            with _spinner(text):
                yield


@contextmanager
def _spinner(text: str) -> Iterator[None]:
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    # Rich must not take stdout over: it is the result's.
    with Bar(
        *columns, console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False
    ) as bar:
        bar.add_task(visible(text), total=None)
        yield
