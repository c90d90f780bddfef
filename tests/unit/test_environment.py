"""The environment is input: what is wrong with it is named as what it is, and is no bug of shardproof."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import shardproof.launch.commands.verify as verifying
from shardproof.launch.cli import run
from shardproof.launch.failures import failure_sentence
from shardproof.launch.ranks.confirm import incomplete
from shardproof.launch.ranks.job import Nodes
from shardproof.launch.ranks.request import Start
from shardproof.launch.ranks.runner import CANNOT_WRITE, CaseResult, Death
from shardproof.launch.ranks.torchrun import TorchrunRanks
from shardproof.planner.ir.plan import Plan
from shardproof.planner.loading.load import load
from shardproof.verify.stages.case import Case
from tests.gate import PATH

BROKEN = {
    "torchvision": (
        'raise RuntimeError("operator torchvision::nms does not exist")',
        "RuntimeError: operator torchvision",
    ),
    "transformers": ('raise ImportError("cannot import name X")', "ImportError: cannot import name X"),
    "torch": ('raise OSError("libc10.so: cannot open shared object file")', "OSError: libc10.so: cannot open"),
    "accelerate": ("import no_such_package", "the package no_such_package is missing"),
}


@pytest.mark.parametrize("package", BROKEN)
def test_a_package_that_does_not_import_is_named(package: str, tmp_path: Path) -> None:
    code, why = BROKEN[package]
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(code + "\n")
    command = [sys.executable, "-c", "from shardproof.launch.entry import main; main()", "verify", "llama", "-q"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(tmp_path), PATH))}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1
    assert why in done.stderr
    assert "bug in shardproof" not in done.stderr
    assert "missing" in why or f"{package} is broken in this environment" in done.stderr


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x/y/plan.json"), "the disk is full (plan.json)"),
        (RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)"), "the disk is full"),
        (OSError(errno.EROFS, "Read-only file system", "/x/out"), "the file system is read-only (out)"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/out"), "there is no permission (out)"),
        (OSError(errno.EMFILE, "Too many open files"), "too many open files"),
        (MemoryError(), "the memory of this machine is used up"),
        (FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"), "set TMPDIR"),
        (
            ModuleNotFoundError("No module named 'libcst'", name="libcst.matchers"),
            "the package libcst is missing",
        ),
    ],
)
def test_a_fault_of_the_machine_is_one_sentence(
    error: Exception, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        try:
            raise error
        except Exception as cause:
            raise RuntimeError("it did not work") from cause

    monkeypatch.setattr(verifying, "read_model", fail)
    assert run(["verify", "llama", "-q"]) == 3
    err = capsys.readouterr().err
    assert sentence in err
    assert "/x" not in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("odd"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "x"),
        ModuleNotFoundError("No module named 'shardproof.gone'", name="shardproof.gone"),
    ],
)
def test_our_bugs_stay_bugs(error: Exception) -> None:
    assert failure_sentence(error) is None


def test_a_result_for_a_read_only_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("shardproof.launch.output.result_file.tempfile.mkstemp", refuse)
    assert run(["verify", "llama", "--set", "num_hidden_layers=1", "--level", "proof", "--output", "out", "-q"]) == 3
    assert "out could not be written: Read-only file system." in capsys.readouterr().err


def case() -> Case:
    return Case(load("llama"), Plan(), 2, 1, 1)


def test_a_rank_that_cannot_write_says_so() -> None:
    (found,) = incomplete(case(), CaseResult({}, 1.0, Death(1, CANNOT_WRITE)), 5.0)
    assert "rank 1 could not write its outcome, for the disk is full or read-only" in found.message


def test_machines_that_never_meet_are_no_hanging_collective() -> None:
    """The second machine never comes: the first one ends by itself, and says what it waited for."""
    with TorchrunRanks(Start(2, 3.0, Nodes(2, 0, "localhost:0"))) as ranks:
        (result,) = ranks.run((case(),))
    assert not result.outcomes
    (found,) = incomplete(case(), result, 3.0)
    assert found.code == "DY504"
    assert "not all of 2 machines at localhost:0 came within" in found.message
