"""What a reader sees while a command works: stderr only, so that stdout is the result and nothing else."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass

from shardproof.launch.result import UndecidedError


def say(sentence: str) -> None:
    """One line on stderr; nobody may be there to read it."""
    with suppress(OSError, ValueError, AttributeError):
        print(f"plan: {sentence}", file=sys.stderr, flush=True)


@contextmanager
def only_results_on_stdout(*, debug: bool = False) -> Iterator[None]:
    """What libraries and a model's own code print goes to stderr; their logs, warnings and progress bars are held back.

    The environment is for this process and the ranks it starts; what the user has set stays.
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
    """The result, on stdout. A reader that has gone away (`plan ... | head`) is no error: the exit code counts.

    `UndecidedError` where it cannot be written: what was found is not known to the caller then.
    """
    if sys.stdout is None:
        raise UndecidedError("the result could not be written: stdout is closed.")
    try:
        print(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes stdout once more at exit; that must not fail either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise UndecidedError(f"the result could not be written to stdout: {error.strerror}.") from error


@dataclass(frozen=True, slots=True)
class Progress:
    """Says what is going on: a spinner with the time on a terminal, one line for each step elsewhere."""

    quiet: bool = False

    def note(self, sentence: str) -> None:
        """What a reader should know beside the result."""
        if not self.quiet:
            say(sentence)

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """One step, shown while it lasts."""
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
        bar.add_task(text, total=None)
        yield
