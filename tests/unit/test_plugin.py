"""The pytest plugin as a model repository uses it, and `plan doctor`."""

from pathlib import Path

import pytest

import shardproof.launch.commands.doctor as doctoring
from shardproof.launch.cli import run
from shardproof.launch.commands.doctor import Package
from tests.forked import run_tests

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
    ended = run_tests("test_it.py", here=tmp_path)
    assert "2 failed, 1 passed" in ended.out, ended
    assert "llama at tp 2: refuted" in ended.out
    assert 'entry "layers.*.mlp.down_proj"' in ended.out
    assert "`plan suggest --write` would change GPT2Config.base_model_tp_plan" in ended.out
    assert "Traceback" not in ended.out


MISLED = """
def test_gone(shardproof):
    shardproof.proof("modeling_gone.py:Gone")

def test_broken(shardproof):
    shardproof.run("modeling_mine.py:Mine")

def test_untrusted(shardproof):
    shardproof.written("checkpoint")

def test_sizes(shardproof):
    shardproof.run("llama", tp=1)
"""


def test_a_model_that_cannot_be_loaded_fails_in_one_block(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(MISLED)
    (tmp_path / "modeling_mine.py").write_text("\nfrom transformers.utils.import_utils import is_torch_fx_available\n")
    (tmp_path / "checkpoint").mkdir()
    fields = '{"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModel": "mine.M"}}'
    (tmp_path / "checkpoint" / "config.json").write_text(fields)
    ended = run_tests("test_it.py", here=tmp_path)
    assert "4 failed" in ended.out, ended
    told = ended.out.partition("short test summary")[0]
    assert "Traceback" not in told
    assert "shardproof/" not in told
    assert str(tmp_path) not in told
    words = " ".join(told.split())
    assert "modeling_gone.py:Gone could not be verified modeling_gone.py: there is no such file" in words
    assert "modeling_mine.py raised ImportError: cannot import name 'is_torch_fx_available'" in words
    assert "on line 2 when it was imported" in words
    assert "Transformers 5 has no is_torch_fx_available" in words
    assert "which would run mine.py" in words
    assert "A run needs at least 2 ranks" in words


def missing(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str | None]) -> None:
    known = doctoring._version
    monkeypatch.setattr(doctoring, "_version", lambda name: versions[name] if name in versions else known(name))


@pytest.mark.parametrize(
    ("versions", "lines"),
    [
        (
            {"accelerate": None},
            ["proof    usable", "run      not usable: accelerate is missing; pip install 'accelerate"],
        ),
        ({"torch": None}, ["proof    not usable: torch is missing", "run      not usable: torch is missing"]),
        (
            {"transformers": "4.57.0"},
            ["differs  transformers 4.57.0", "proof    not usable: transformers is 4.57.0; pip"],
        ),
    ],
)
def test_doctor_fails_where_a_level_cannot_be_used(
    versions: dict[str, str | None],
    lines: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    missing(monkeypatch, versions)
    assert run(["doctor"]) == 3
    out = capsys.readouterr().out
    assert [line for line in lines if line not in out] == []


def test_doctor_says_what_does_not_import(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctoring, "_broken", lambda: "torchvision is broken in this environment")
    assert run(["doctor"]) == 3
    assert "run      not usable: torchvision is broken in this environment" in capsys.readouterr().out


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
    assert (Package("any", have, bounds).state == "ok") is fits
