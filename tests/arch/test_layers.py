"""The import contracts of pyproject.toml hold, and each of them is broken by an import that it forbids."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.gate import ROOT, command

CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
LINT = "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports_command; lint_imports_command()"


def test_the_import_contracts_hold() -> None:
    done = subprocess.run(command("imports"), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def forbidden_imports(contract: dict[str, Any]) -> list[tuple[str, str]]:
    """Pairs of modules of which the first must not import the second: one for each boundary of the contract."""
    if contract["type"] == "forbidden":
        return [(one, other) for one in contract["source_modules"] for other in contract["forbidden_modules"]]
    (container,) = contract["containers"]
    layers = [[f"{container}.{name.strip()}" for name in layer.split("|")] for layer in contract["layers"]]
    upwards = [
        (low, high) for at, above in enumerate(layers) for below in layers[at + 1 :] for low in below for high in above
    ]
    beside = [(one, other) for layer in layers for one in layer for other in layer if one != other]
    return [*upwards, *beside]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package in which every module is empty, and the links are folders."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT / "src" / "shardproof", folder / "shardproof", ignore=shutil.ignore_patterns("__pycache__"))
    for file in (folder / "shardproof").rglob("*.py"):
        file.write_text("")
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract["name"])
def test_every_forbidden_import_is_found(contract: dict[str, Any], package: Path) -> None:
    """Each in a module of its own, so that one run names all of them."""
    forbidden = forbidden_imports(contract)
    assert forbidden
    written = []
    for number, (one, other) in enumerate(forbidden):
        folder = package / one.replace(".", "/")
        file = folder / f"forbidden_{number}.py" if folder.is_dir() else folder.with_suffix(".py")
        with file.open("a") as lines:
            lines.write(f"import {other}\n")
        written.append(file)
    arguments = ("--config", "pyproject.toml", "--no-cache")
    done = subprocess.run(
        [sys.executable, "-c", LINT, *arguments], cwd=package, capture_output=True, text=True, check=False
    )
    for file in set(written):
        file.write_text("")
    said = " ".join(done.stdout.split())
    assert f"{contract['name']} BROKEN" in said, done.stdout + done.stderr
    missing = [
        (one, other)
        for (one, other), file in zip(forbidden, written, strict=True)
        if f"{'.'.join(file.relative_to(package).with_suffix('').parts)} -> {other}" not in said
    ]
    assert missing == [], done.stdout
