"""Imports go one way: launch -> verify -> planner, and inside planner as pyproject.toml says."""

import subprocess

from tests.gate import ROOT, command


def test_the_import_contracts_hold() -> None:
    done = subprocess.run(command("imports"), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
