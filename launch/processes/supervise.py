"""Child processes: each starts in a session of its own, and is ended with all of its own children on every way out.

A child of this interpreter runs with `-P`, and a script in another interpreter (which may be older than `-P`) through
`script_in`: neither has the current folder, or the folder of the script, on its path, so no file there can stand in for a
module.
"""

import os
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import TypeAlias, TypeVar

Child: TypeAlias = "subprocess.Popen[bytes]"
Found = TypeVar("Found")

PATIENCE = 5.0
"""Seconds between asking a child to end and killing it with all of its children."""
_POLL = 0.02
_PACKAGE_ROOT = Path(__file__).parents[3]
"""The folder that `shardproof` lies in."""
_JOB_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_RUN_SCRIPT = (
    "import sys; sys.path[:] = filter(None, sys.path); sys.argv[:] = sys.argv[1:]; "
    "import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
)
"""`python -c` puts the current folder on the path as an empty name; a script's own folder is not put there at all."""


class Stopped(Enum):
    """Why waiting for children ended without what was waited for."""

    ENDED = "every child has ended"
    LATE = "the time is over"


def own_environment() -> dict[str, str]:
    """The environment for a child of this interpreter: it imports this `shardproof`, and is no rank of a surrounding job.

    What the user has in PYTHONPATH stays there.
    """
    kept = {name: value for name, value in os.environ.items() if name not in _JOB_VARIABLES}
    installed = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    roots = [] if str(_PACKAGE_ROOT) in installed else [str(_PACKAGE_ROOT)]
    path = os.pathsep.join(filter(None, [*roots, os.environ.get("PYTHONPATH", "")]))
    return kept | {"PYTHONSAFEPATH": "1"} | ({"PYTHONPATH": path} if path else {})


def client_environment(python: str) -> dict[str, str]:
    """The environment for a child of a client's interpreter: of another one than ours, without our module path."""
    ours = () if python == sys.executable else ("PYTHONPATH", "PYTHONHOME")
    return {name: value for name, value in os.environ.items() if name not in ours}


def script_in(python: str, script: Path, *arguments: str) -> list[str]:
    """The command that runs a script in an interpreter of any version since 3.8."""
    return [python, "-c", _RUN_SCRIPT, str(script), *arguments]


@contextmanager
def child_process(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.DEVNULL,
    stderr: int = subprocess.DEVNULL,
    patience: float = 0.0,
) -> Iterator[Child]:
    """A child as long as the `with` block lasts.

    Args:
        command: the program and its arguments.
        environment: the whole environment of the child.
        stdin: a file descriptor, or `subprocess.PIPE`; a pipe stays open as long as this process lives.
        stdout: a file descriptor, or `subprocess.PIPE`.
        stderr: a file descriptor, or `subprocess.PIPE`.
        patience: seconds that the child gets to end its own children after SIGTERM; with 0 it is killed at once.
    """
    with _sigterm_raises():
        process = subprocess.Popen(
            command, stdin=stdin, stdout=stdout, stderr=stderr, env=environment, start_new_session=True
        )
        try:
            yield process
        finally:
            _end(process, patience)


def _end(process: Child, patience: float) -> None:
    """SIGTERM lets a launcher end its ranks; SIGKILL to the whole session ends what is left."""
    if patience and process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with suppress(OSError):
                stream.close()


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM raises SystemExit while a child runs, so that it is ended too; only where nobody else handles SIGTERM."""
    mine = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if mine:
        signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        if mine:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def wait_for(
    look: Callable[[], Found | None], children: Sequence[Child], *, until: float, poll: float = _POLL
) -> Found | Stopped:
    """What `look` finds, or why it will find nothing more: all children have ended, or the clock is past `until`.

    `look` is asked once more after the last child has ended: what the child wrote before is then there. `until` is a time of
    `time.monotonic`, `poll` the seconds between two looks.
    """
    while True:
        ended = all(child.poll() is not None for child in children)
        late = time.monotonic() > until
        if (found := look()) is not None:
            return found
        if ended or late:
            return Stopped.ENDED if ended else Stopped.LATE
        time.sleep(poll)


def output_of(
    command: Sequence[str], *, environment: Mapping[str, str], text: str, timeout: float
) -> tuple[int, str] | None:
    """The exit code and standard output of a child that reads `text`; None where it takes more than `timeout` seconds."""
    pipe = subprocess.PIPE
    with child_process(command, environment=environment, stdin=pipe, stdout=pipe) as process:
        try:
            out, _ = process.communicate(text.encode(), timeout)
        except subprocess.TimeoutExpired:
            return None
        return process.returncode, out.decode(errors="replace")
