"""`--python FILE`: the same command in another interpreter, which has torch and Transformers and none of our other packages."""

import json
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from shardproof.launch.cli import run
from shardproof.launch.clients.other_python import VLLM_PYTHON, without_option

_OURS = ("typer", "click", "rich", "libcst", "shardproof", "__editable__", "pip")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An environment without what the command line and the pages need, and without shardproof."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    packages = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    for each in Path(sysconfig.get_path("purelib")).iterdir():
        if not each.name.startswith(_OURS) and each.suffix != ".pth":
            (packages / each.name).symlink_to(each)
    return str(folder / "bin" / "python")


def test_the_command_runs_with_what_another_interpreter_has(bare: str, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["verify", "gpt2", "--set", "n_layer=2", "--level", "proof", "--format", "json"]
    assert run([*arguments, "--python", bare]) == 1  # GPT-2 carries no plan that splits its heads
    out, err = capfd.readouterr()
    assert f"plan: in {bare}: Python " in err
    report = json.loads(out)
    have = report["environment"]
    assert have["started_from"]["transformers"] == have["transformers"]
    assert run(arguments) == 1
    here = json.loads(capfd.readouterr().out)
    assert {key: report[key] for key in ("verdict", "findings")} == {key: here[key] for key in ("verdict", "findings")}
    assert "started_from" not in here["environment"]


def test_exit_code_and_error_of_the_other_interpreter_are_passed_on(
    bare: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", "no-such-model", f"--python={bare}", "--quiet"]) == 2
    assert capfd.readouterr().err.startswith("plan: no-such-model")


@pytest.mark.parametrize(
    ("python", "words"),
    [
        ("no/such/file", "there is no such interpreter"),
        ("/bin/ls", "does not answer as a Python does"),
    ],
)
def test_what_is_no_interpreter_for_a_model_is_one_sentence(
    python: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["suggest", "llama", "--python", python]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert len(err.splitlines()) == 1


def test_an_environment_without_torch_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    venv.create(tmp_path, with_pip=False)
    assert run(["suggest", "llama", "--python", str(tmp_path / "bin" / "python")]) == 2
    assert "has no torch; install it there, or give another interpreter." in capsys.readouterr().err


def test_versions_below_the_floor_are_refused(
    bare: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "transformers-5.1.0.dist-info"
    old.mkdir()
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 5.1.0\n")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {bare} "$@"\n')
    python.chmod(0o755)
    assert run(["check", "llama", "--python", str(python)]) == 2
    assert "has transformers 5.1.0, and 5.16 is the oldest that works" in capsys.readouterr().err


def test_level_client_proves_with_what_the_client_has(
    bare: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VLLM_PYTHON, bare)
    assert run(["verify", "no-such-model", "--level", "client"]) == 2
    assert f"plan: in {bare}: Python " in capfd.readouterr().err
    monkeypatch.setenv(VLLM_PYTHON, "/bin/ls")
    assert run(["verify", "no-such-model", "--level", "client"]) == 2
    assert "the proof is made with the Transformers " in capfd.readouterr().err


def test_the_option_is_taken_out() -> None:
    given = ["verify", "m", "--python", "p", "--tp", "2", "--python=q"]
    assert without_option(given) == ["verify", "m", "--tp", "2"]
