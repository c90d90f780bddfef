"""The pytest plugin as a model repository uses it, and `plan doctor`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shardproof.launch.cli import run
from shardproof.launch.commands.doctor import _fits
from tests.gate import PATH

TESTS = """
def test_right(shardproof):
    shardproof.proof("llama", tp=2, overrides={"num_hidden_layers": "2"})

def test_wrong(shardproof):
    from shardproof.planner.ir.plan import Plan, TpEntry
    plan = Plan(tp=(TpEntry("layers.*.mlp.down_proj", "rowwise"),))
    shardproof.proof("llama", tp=2, plan=plan, overrides={"num_hidden_layers": "2"})

def test_not_written(shardproof):
    shardproof.written("gpt2", overrides={"n_layer": "2"})
"""


def test_one_line_for_a_model(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    options = ["-q", "-p", "shardproof.launch.pytest_plugin", "-p", "no:cacheprovider", "-W", "ignore"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": PATH, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert "2 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "llama at tp 2: refuted" in done.stdout
    assert 'entry "layers.*.mlp.down_proj"' in done.stdout
    assert "`plan suggest --write` would change GPT2Config.base_model_tp_plan" in done.stdout
    assert "Traceback" not in done.stdout


def test_doctor_says_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "ok       torch 2.13" in out
    assert "proof    usable" in out
    assert str(Path.home()) not in out


@pytest.mark.parametrize(
    ("have", "bounds", "fits"),
    [
        ("2.13.0+cpu", ">=2.13,<2.14", True),
        ("2.14.0", "<2.14,>=2.13", False),
        ("2.9", ">=2.13", False),
        ("1.0", "", True),
    ],
)
def test_versions_against_bounds(have: str, bounds: str, fits: bool) -> None:
    assert _fits(have, bounds) is fits
