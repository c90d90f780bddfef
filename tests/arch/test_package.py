"""What is shipped: the three packages with their type marker and licence, and nothing of the tests or examples."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.gate import ROOT
from tests.readme import README, set_up_commands


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names of the files in a wheel built from a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not tracked:
        tracked = [str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if ".venv" not in path.parts]
    for name in filter(lambda name: (ROOT / name).is_file(), tracked):
        target = folder / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    build = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(folder),
        str(folder / "source"),
    ]
    subprocess.run(build, check=True, capture_output=True)
    (made,) = folder.glob("*.whl")
    return zipfile.ZipFile(made).namelist()


def test_the_wheel_holds_the_three_packages_only(wheel: list[str]) -> None:
    tops = {name.split("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"planner", "verify", "launch"}
    assert {f"{package}/py.typed" for package in ("planner", "verify", "launch")} <= set(wheel)
    assert any(name.endswith("licenses/LICENSE") for name in wheel)


def test_every_direct_dependency_is_bounded_and_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    for requirement in project["dependencies"]:
        name, _, bounds = requirement.partition(">=")
        assert "<" in bounds, requirement
        assert name in pinned, requirement


def test_the_readme_opens_with_two_set_up_commands() -> None:
    text = README.read_text()
    commands = set_up_commands(text)
    assert len(commands) == 2
    assert all("\n" not in command and "-c constraints.txt" in command for command in commands)
    assert text.index("<!-- set-up -->") < 1500


def test_torchrun_is_never_documented_with_a_module_of_ours() -> None:
    pages = [README, *Path(ROOT / "docs").rglob("*.md"), ROOT / "CONTRIBUTING.md"]
    assert not [page.name for page in pages if "-m launch" in page.read_text()]
