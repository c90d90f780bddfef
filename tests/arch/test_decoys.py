"""`planner`, `verify`, `launch`, `tests` and `benchmarks` are common words: a user's own files of that name are not imported.

Every decoy raises when it is imported. They lie in the current folder, beside the script, at the front of PYTHONPATH and, for
site-packages, at the end of the path.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from shardproof.launch.processes.supervise import client_environment, script_in
from tests.gate import ROOT

PLAN = Path(sys.executable).with_name("plan")
NAMES = ("planner", "verify", "launch", "tests", "benchmarks")
STANDARD = ("json", "typing", "random", "pickle", "torch")
"""No folder that a command stands in may stand in for these either."""
SMALL = ("llama", "--set", "num_hidden_layers=2")
OWN_MODEL = """
from transformers import LlamaConfig, LlamaForCausalLM

class MyConfig(LlamaConfig):
    base_model_tp_plan = None

class MyModel(LlamaForCausalLM):
    config_class = MyConfig
    _tp_plan = None
"""
OWN_SCRIPT = """
import verify
from shardproof import confirm, load, prove, suggest

if __name__ == "__main__":
    assert verify.MINE
    loaded = load("verify:MyModel", overrides={"num_hidden_layers": 1})
    plan = suggest(loaded).plan
    assert prove(loaded, plan, tp=2).verdict == "proved"
    assert confirm(loaded, plan, tp=2).verdict == "confirmed"
"""

# In CI the package is installed, and the absence of its command is a failure.
installed = pytest.mark.skipif(
    not PLAN.exists() and "CI" not in os.environ, reason="needs the installed console script: pip install -e ."
)


def raise_on_import(folder: Path, names: Sequence[str], *, packages: bool) -> Path:
    """A folder with modules or packages of these names."""
    for name in names:
        file = folder / name / "__init__.py" if packages else folder / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"raise RuntimeError('the decoy {name} was imported')\n")
    return folder


@pytest.fixture(params=["modules", "packages"])
def environment(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """Decoys at both ends of the path, of one kind in front and of the other behind."""
    packages = request.param == "packages"
    front = raise_on_import(tmp_path / "front", NAMES, packages=packages)
    site = raise_on_import(tmp_path / "site-packages", NAMES, packages=not packages)
    path = os.pathsep.join(map(str, (front, ROOT / "src", site)))
    state = {"XDG_STATE_HOME": str(tmp_path / "state"), "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **state, "PYTHONPATH": path}


@pytest.fixture
def here(tmp_path: Path, environment: dict[str, str]) -> Path:
    """A current folder that is full of decoys, of both kinds."""
    made = raise_on_import(tmp_path / "here", [*NAMES[:2], *STANDARD], packages=False)
    return raise_on_import(made, NAMES[2:], packages=True)


def run(command: Sequence[str | Path], here: Path, environment: dict[str, str]) -> str:
    """The standard output of a command that must end well and import no decoy."""
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "decoy" not in done.stdout + done.stderr
    return done.stdout


@installed
@pytest.mark.parametrize("environment", ["modules", "packages"], indirect=True)
@pytest.mark.parametrize("arguments", [("--help",), ("explain", "TP203")], ids=" ".join)
def test_a_light_command_imports_no_decoy(arguments: tuple[str, ...], here: Path, environment: dict[str, str]) -> None:
    run([PLAN, *arguments], here, environment)


@installed
@pytest.mark.parametrize(
    ("environment", "arguments"),
    [
        ("modules", ("verify", *SMALL, "--tp", "2")),
        ("packages", ("check", *SMALL)),
    ],
    indirect=["environment"],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_command_imports_no_decoy(arguments: tuple[str, ...], here: Path, environment: dict[str, str]) -> None:
    run([PLAN, *arguments], here, environment)


@installed
@pytest.mark.parametrize("environment", ["packages"], indirect=True)
def test_writing_a_plan_imports_no_decoy(here: Path, environment: dict[str, str]) -> None:
    """The process that reads the written plan back starts in the same folder."""
    (here / "mine.py").write_text(OWN_MODEL)
    assert "+    base_model_tp_plan = {" in run([PLAN, "suggest", "mine.py:MyModel", "--write"], here, environment)


@pytest.mark.parametrize("environment", ["modules"], indirect=True)
def test_the_pytest_plugin_imports_no_decoy(tmp_path: Path, environment: dict[str, str]) -> None:
    """`python -m pytest` has the current folder first on its path."""
    here = raise_on_import(tmp_path / "suite", NAMES, packages=False)
    (here / "test_it.py").write_text("def test_it(shardproof):\n    shardproof.proof('llama', tp=2)\n")
    options = ("-q", "-p", "shardproof.launch.pytest_plugin", "-p", "no:cacheprovider", "-W", "ignore")
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    assert "1 passed" in run([sys.executable, "-m", "pytest", *options, "test_it.py"], here, environment)


@pytest.mark.parametrize("environment", ["packages"], indirect=True)
def test_a_script_imports_its_own_module_of_that_name(tmp_path: Path, environment: dict[str, str]) -> None:
    """A user's `verify.py` beside the script is theirs, on the ranks too, whatever else has that name."""
    here = raise_on_import(tmp_path / "mine", [name for name in NAMES if name != "verify"], packages=False)
    (here / "verify.py").write_text(f"MINE = True\n{OWN_MODEL}")
    (here / "script.py").write_text(OWN_SCRIPT)
    run([sys.executable, "script.py"], here, environment)


def test_a_client_s_script_imports_nothing_of_its_own_folder(tmp_path: Path) -> None:
    """Nor of the current one; the interpreter may be older than `python -P`."""
    folder = raise_on_import(tmp_path / "session", STANDARD, packages=False)
    (folder / "session.py").write_text("import sys, json, random, pickle\nprint(json.dumps(sys.argv[1:]))\n")
    command = script_in(sys.executable, folder / "session.py", "job.json")
    environment = client_environment(sys.executable) | {"PYTHONSAFEPATH": ""}
    assert run(command, folder, environment) == '["job.json"]\n'
