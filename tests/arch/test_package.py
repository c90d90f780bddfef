"""What is shipped: one import package with its type marker and licence, and nothing of the tests, benchmarks or examples."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardproof.planner.transformers_facts.version import FLOOR, is_tested
from tests.gate import ROOT
from tests.readme import README, set_up_commands


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, with the links as links."""
    folder = tmp_path_factory.mktemp("sources")
    skipped = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
    for name in ("src", "planner", "verify", "launch", "tests", "benchmarks", "examples"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=skipped)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """A wheel built from the copy."""
    folder = tmp_path_factory.mktemp("wheel")
    command = ("-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(sources))
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    (made,) = folder.glob("*.whl")
    with zipfile.ZipFile(made) as opened:
        yield opened


def test_the_wheel_holds_one_import_package(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert {top for name in names if not (top := name.split("/")[0]).endswith(".dist-info")} == {"shardproof"}
    assert "shardproof/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_links_to_the_three_folders_are_files_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    """Every tracked module and template is there, and no entry is a link."""
    packed = {name for name in wheel.namelist() if name.startswith("shardproof/")}
    ours = [ROOT / folder for folder in ("planner", "verify", "launch")]
    files = [path for folder in ours for suffix in ("*.py", "*.jinja") for path in folder.rglob(suffix)]
    assert {f"shardproof/{path.relative_to(ROOT).as_posix()}" for path in files} <= packed
    assert [entry.filename for entry in wheel.infolist() if (entry.external_attr >> 16) & 0o170000 == 0o120000] == []


def test_an_editable_install_puts_src_alone_on_the_path(sources: Path, tmp_path: Path) -> None:
    code = (
        "import os, sys; from setuptools.build_meta import build_editable\n"
        "os.chdir(sys.argv[1]); build_editable(sys.argv[2])"
    )
    subprocess.run([sys.executable, "-c", code, str(sources), str(tmp_path)], check=True, capture_output=True)
    (made,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(made) as opened:
        (path,) = [name for name in opened.namelist() if ".dist-info/" not in name]
        assert path.endswith(".pth")
        assert opened.read(path).decode().split() == [str(sources / "src")]


def test_every_direct_dependency_is_bounded_and_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in project["dependencies"]:
        name, _, bounds = requirement.partition(">=")
        assert "<" in bounds, requirement
        assert name in pinned("constraints.txt"), requirement
        assert name in pinned("constraints-floor.txt"), requirement


def pinned(constraints: str) -> dict[str, str]:
    """Package -> version, of one file of constraints."""
    lines = (ROOT / constraints).read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def test_the_floor_is_the_oldest_version_and_what_the_gate_installs_is_tested() -> None:
    assert pinned("constraints-floor.txt")["transformers"].startswith(".".join(map(str, FLOOR)) + ".")
    assert is_tested(pinned("constraints.txt")["transformers"])
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    floor = ".".join(map(str, FLOOR))
    assert any(one.startswith(f"transformers>={floor},") for one in wanted)


def test_the_readme_opens_with_two_set_up_commands() -> None:
    text = README.read_text()
    commands = set_up_commands(text)
    assert len(commands) == 2
    assert all("\n" not in command and "-c constraints.txt" in command for command in commands)
    assert text.index("<!-- set-up -->") < 1500


def test_torchrun_is_never_documented_with_a_module_of_ours() -> None:
    pages = [README, *Path(ROOT / "docs").rglob("*.md"), ROOT / "CONTRIBUTING.md"]
    assert not [page.name for page in pages if "-m launch" in page.read_text()]
