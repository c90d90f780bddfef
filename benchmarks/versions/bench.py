"""`python -m benchmarks versions --only 5.24.0,5.19.0`: every causal-LM type on these versions of Transformers, resumable.

Each version is installed into a folder that stands before the environment's packages. `newest` is the newest release: what the
next user installs. The first version that is named is what the others are compared with.
"""

import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from benchmarks.versions.compare import Swept, changes
from benchmarks.versions.facts import Facts, facts_of
from benchmarks.versions.page import page, totals
from benchmarks.zoo.bench import measuring
from benchmarks.zoo.rows import Row, disagreements, read_rows
from tests.gate import PATH, ROOT


def main(
    types: tuple[str, ...], folder: Path, *, versions: tuple[str, ...], levels: tuple[str, ...], page_at: Path | None
) -> int:
    """Measure what is missing in the folder, print what differs; exit 1 where proof and run disagree."""
    swept = [_swept(types, folder, version, levels) for version in versions or ("newest",)]
    Console().print(totals(swept))
    for after in swept[1:]:
        for change in changes(swept[0], after):
            Console().print(f"{after.facts.version} {change.name}: {change.before} -> {change.after} {change.reason}")
    if page_at is not None:
        page_at.write_text(page(swept))
    return int(any(disagreements(one.rows.values()) for one in swept))


def _swept(types: tuple[str, ...], folder: Path, version: str, levels: tuple[str, ...]) -> Swept:
    folder.mkdir(parents=True, exist_ok=True)
    libraries = _installed(folder / "libraries" / version, version)
    facts = _facts(libraries)
    path = folder / f"{facts.version}.jsonl"
    rows = read_rows(path)
    with path.open("a") as file, measuring(once=True, libraries=libraries) as measurer:
        for name in [name for name in types or facts.sources if name in facts.sources]:
            row = rows.get(name)
            for level in levels:
                if row is None or (level != "proof" and row.mine is not None and not row.mine.run and not row.reason):
                    row = rows[name] = measurer.ask(row or Row(name, "load"), level)
                    file.write(row.line() + "\n")
                    file.flush()
    return Swept(facts, rows)


def _installed(libraries: Path, version: str) -> Path:
    """The folder with this version and what it needs beside torch; `newest` is asked for anew each time."""
    if version == "newest" or not (libraries / "transformers").is_dir():
        wanted = "transformers" if version == "newest" else f"transformers=={version}"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--target", str(libraries), wanted]
        subprocess.run(pip, check=True, timeout=900)
    return libraries


def _facts(libraries: Path) -> Facts:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((PATH, str(libraries)))}
    command = [sys.executable, "-m", "benchmarks.versions.facts"]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True, timeout=300)
    return facts_of(done.stdout.splitlines()[-1])
