"""The same command in another Python: that of an engine, or of the user's project (`--python FILE`).

There the model's code, Transformers and torch are those that will serve or train it. This package is put on the path of that
interpreter, and with it those of its own dependencies that are missing there or do not fit; nothing is installed. What has to
be there are torch and Transformers, within the bounds of this package.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet

from shardproof.launch.processes.supervise import PATIENCE, child_process, client_environment
from shardproof.launch.result import MisuseError
from shardproof.verify.report.environment import STARTED_FROM, environment, started_from

VLLM_PYTHON = "SHARDPROOF_VLLM_PYTHON"
"""Names the interpreter of the environment that vLLM is installed in."""
_THEIRS = ("torch", "transformers", "accelerate")
"""What a model is run with: never taken from this environment."""
_REQUIRED = ("torch", "transformers")
_OLDEST = (3, 11)
_LIMIT = 60.0
_ASK = """
import json, sys
from importlib.metadata import distributions
have = {(one.metadata["Name"] or "").lower().replace("_", "-"): one.version for one in reversed(list(distributions()))}
print(json.dumps({"python": list(sys.version_info[:2]), "tag": sys.implementation.cache_tag, "have": have}))
"""
_MAIN = "from shardproof.launch.entry import main; main()"


@dataclass(frozen=True, slots=True)
class OtherPython:
    """An interpreter, its version, the tag of its compiled modules, and the versions of what it has installed."""

    path: str
    version: tuple[int, ...]
    tag: str
    have: Mapping[str, str]


def run_in_client(python: str | None, arguments: Sequence[str], say: Callable[[str], None]) -> int | None:
    """Run the command in the interpreter of the client that it asks for, so that what is proved is what the client runs.

    Returns:
        The exit code; None where the command stays here: the client is in this environment, or shardproof cannot run in that
        of the client, which is said.
    """
    if not python or started_from() or not os.path.isfile(python) or os.path.abspath(python) == sys.executable:
        return None
    try:
        examined(python)
    except MisuseError as error:
        have = environment()
        say(f"the proof is made with the Transformers {have['transformers']} of this environment, for {error}")
        return None
    return run_elsewhere(python, arguments, say)


def run_elsewhere(python: str, arguments: Sequence[str], say: Callable[[str], None]) -> int:
    """Run the command in another interpreter, with this one's input and outputs, and return its exit code.

    Args:
        python: a file that is a Python of 3.11 or later, with torch and Transformers.
        arguments: those of the command.
        say: tells a sentence to the user.

    Raises:
        MisuseError: there is no such interpreter, or it lacks what a model is run with.
    """
    other = examined(python)
    if not {"-q", "--quiet"} & set(arguments):
        named = ", ".join(f"{name} {other.have[name]}" for name in _REQUIRED)
        say(f"in {python}: Python {'.'.join(map(str, other.version))}, {named}.")
    arguments = without_option(arguments)
    with tempfile.TemporaryDirectory(prefix="shardproof-") as folder:
        _lay_out(Path(folder), other)
        variables = client_environment(other.path) | _module_path(folder)
        variables[STARTED_FROM] = json.dumps(environment())
        command = [other.path, "-P", "-c", _MAIN, *arguments]
        with child_process(command, environment=variables, stdin=0, stdout=1, stderr=2, patience=2 * PATIENCE) as child:
            return child.wait()


def without_option(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command, without `--python FILE`."""
    kept, rest = [], iter(arguments)
    for each in rest:
        if each == "--python":
            next(rest, None)
        elif not each.startswith("--python="):
            kept.append(each)
    return kept


def examined(python: str) -> OtherPython:
    """What another interpreter is and has.

    Raises:
        MisuseError: it is none, does not answer, is too old, or lacks torch or Transformers within the bounds.
    """
    path = os.path.abspath(python)  # not resolved: the Python of a virtual environment is a link
    if not (os.path.isfile(path) and os.access(path, os.X_OK)):
        raise MisuseError(f"--python {python}: there is no such interpreter; give the file, such as env/bin/python.")
    try:
        done = subprocess.run(
            [path, "-c", _ASK],
            capture_output=True,
            text=True,
            timeout=_LIMIT,
            env=client_environment(path) | _module_path(),
            cwd=os.sep,
            check=True,
        )
        told = json.loads(done.stdout.strip().rpartition("\n")[2])
        other = OtherPython(path, tuple(told["python"]), str(told["tag"]), dict(told["have"]))
    except (OSError, ValueError, KeyError, TypeError, subprocess.SubprocessError):
        raise MisuseError(f"--python {python} does not answer as a Python does; give an interpreter.") from None
    if other.version < _OLDEST:
        have, need = (".".join(map(str, each)) for each in (other.version, _OLDEST))
        raise MisuseError(f"--python {python} is Python {have}, and shardproof needs {need} or later.")
    bounds = {one.name: one.specifier for one in _wanted("shardproof")}  # none where shardproof itself is not installed
    for name in _REQUIRED:
        _refuse_unfit(python, name, other.have.get(name), bounds.get(name, SpecifierSet()))
    return other


def _refuse_unfit(python: str, name: str, have: str | None, bounds: SpecifierSet) -> None:
    """Torch and Transformers have to be there, and not below the floor; above it the command itself warns."""
    if have is None:
        raise MisuseError(f"--python {python} has no {name}; install it there, or give another interpreter.")
    floors = [bound for bound in bounds if bound.operator == ">="]
    if not all(bound.contains(have, prereleases=True) for bound in floors):
        needed = ", ".join(bound.version for bound in floors)
        raise MisuseError(f"--python {python} has {name} {have}, and {needed} is the oldest that works.")


def _module_path(*first: str) -> dict[str, str]:
    """PYTHONPATH for the other interpreter: these folders, then what the user has there, from wherever it is read."""
    own = [os.path.abspath(part) for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    return {"PYTHONPATH": os.pathsep.join([*first, *own])} if first or own else {}


def _lay_out(folder: Path, other: OtherPython) -> None:
    """Fill a folder with links: this package, and those of its dependencies that the other interpreter needs from here."""
    (folder / "shardproof").symlink_to(Path(__file__).absolute().parents[2])
    _link(folder, "shardproof", other)  # its version and bounds
    linked: set[str] = set()
    waiting = [one for one in _wanted("shardproof") if one.name not in _THEIRS]
    while waiting:
        requirement = waiting.pop()
        have = other.have.get(_normal(requirement.name))
        if requirement.name in linked or (have and requirement.specifier.contains(have, prereleases=True)):
            continue
        linked.add(requirement.name)
        if _link(folder, requirement.name, other):
            waiting += _wanted(requirement.name)


def _link(folder: Path, name: str, other: OtherPython) -> bool:
    """Link what a distribution installed; False where it is not here, or was compiled for another Python."""
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return False
    files = [file for file in found.files or () if file.parts[0] not in ("..", "__pycache__")]
    compiled = [file.name for file in files if file.suffix == ".so"]
    if any("abi3" not in each and other.tag.replace("cpython-", "cpython-") not in each for each in compiled):
        return False
    for top in {file.parts[0] for file in files if file.suffix != ".pth"}:
        if not (folder / top).exists():
            (folder / top).symlink_to(Path(str(found.locate_file(top))).absolute())
    return True


def _wanted(name: str) -> list[Requirement]:
    """The direct dependencies of a distribution, without those of its extras; none where it is not installed."""
    try:
        found: Distribution = distribution(name)
    except PackageNotFoundError:
        return []
    wanted = []
    for text in found.requires or ():
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            wanted.append(requirement)
    return wanted


def _normal(name: str) -> str:
    return name.lower().replace("_", "-")
