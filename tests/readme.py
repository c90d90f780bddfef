"""The commands that the README shows, so that what runs and what is shown cannot drift apart.

`python tests/readme.py` prints the two set-up commands, one a line; `.ci/run` executes them. Standard library only: it
runs before anything is installed.
"""

import re
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"

_SET_UP = re.compile(r"<!-- set-up -->\n```bash\n(.+?)\n```", re.DOTALL)
_CONSOLE = re.compile(r"```console\n(.+?)```", re.DOTALL)


def set_up_commands(text: str) -> list[str]:
    """The two one-line commands under the `set-up` markers."""
    return [found.strip() for found in _SET_UP.findall(text)]


def console_commands(text: str) -> list[str]:
    """Every command after a `$` in a console block."""
    blocks = "\n".join(_CONSOLE.findall(text))
    return [line.removeprefix("$ ") for line in blocks.splitlines() if line.startswith("$ ")]


if __name__ == "__main__":
    print("\n".join(set_up_commands(README.read_text())))
