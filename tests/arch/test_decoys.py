"""`planner`, `verify` and `launch` are common words: an installed `plan` must not pick up a user's own files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PLAN = Path(sys.executable).with_name("plan")

# In CI the package is installed, and the absence of its command is a failure.
pytestmark = pytest.mark.skipif(
    not PLAN.exists() and "CI" not in os.environ, reason="needs the installed console script: pip install -e ."
)


@pytest.fixture
def decoys(tmp_path: Path) -> Path:
    """A folder with files called like our packages, each of which raises."""
    for name in ("launch", "verify", "planner"):
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('the decoy {name}.py was imported')\n")
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["explain", "TP203"],
        ["suggest", "llama", "--set", "num_hidden_layers=2"],
        ["verify", "llama", "--tp", "2", "--set", "num_hidden_layers=2"],
    ],
    ids=" ".join,
)
def test_the_installed_command_works_beside_decoys(arguments: list[str], decoys: Path) -> None:
    done = subprocess.run([PLAN, *arguments], cwd=decoys, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "decoy" not in done.stdout + done.stderr
