"""The commands that the README shows, so that what runs and what is shown cannot drift apart.

`python tests/readme.py` prints the two set-up commands, one a line; `.ci/run` executes them. Standard library only: it
runs before anything is installed.
"""

import re
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"

_SET_UP = re.compile(r"<!-- set-up -->\n```bash\n(.+?)\n```", re.DOTALL)
_CONSOLE = re.compile(r"```console\n(.+?)```", re.DOTALL)
_MEASURED = re.compile(r" *\d+(\.\d+)?(e[+-]?\d+)? ?s\b| *\d\.\d+e[+-]?\d+")


def set_up_commands(text: str) -> list[str]:
    """The two one-line commands under the `set-up` markers."""
    return [found.strip() for found in _SET_UP.findall(text)]


def console_sessions(text: str) -> list[tuple[str, str]]:
    """Every command after a `$` in a console block, with the output shown under it (none: an empty string)."""
    sessions = []
    for block in _CONSOLE.findall(text):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            sessions.append((command, output.strip("\n")))
    return sessions


def matches(shown: str, printed: str) -> bool:
    """Whether the output shown is the output printed: measured times and errors may differ, `...` is one line or more."""
    return _lines_match(
        [_masked(line) for line in shown.splitlines()], [_masked(line) for line in printed.strip("\n").splitlines()]
    )


def _masked(line: str) -> str:
    return _MEASURED.sub("#", line.rstrip())


def _lines_match(shown: list[str], printed: list[str]) -> bool:
    """Stretches between the `...` are looked for in order, the first at the start, the last at the end."""
    stretches: list[list[str]] = [[]]
    for line in shown:
        if line == "...":
            stretches.append([])
        else:
            stretches[-1].append(line)
    if len(stretches) == 1:
        return shown == printed
    at, last = len(stretches[0]), stretches[-1]
    if printed[:at] != stretches[0]:
        return False
    for stretch in stretches[1:-1]:
        starts = range(at + 1, len(printed) - len(stretch) + 1)
        start = next((i for i in starts if printed[i : i + len(stretch)] == stretch), None)
        if start is None:
            return False
        at = start + len(stretch)
    end = len(printed) - len(last)
    return end > at and printed[end:] == last


if __name__ == "__main__":
    print("\n".join(set_up_commands(README.read_text())))
