"""`python -m benchmarks hostile --pairs 600`: wrong and hostile inputs, each in a process of its own.

Counted are inputs whose code ran without consent, that ended in a traceback or as a bug of ours, that had an exit code they may
not have, that answered in more than one sentence where they are misuse, that left a process or a file, and that did not end.
"""

import ast
import json
import os
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.hostile.inputs import CANARY, Input, canary, inputs
from tests.forked import Ended, run_command

FAULTS = (
    "ran code",
    "prints code that runs",
    "traceback",
    "called a bug",
    "wrong exit code",
    "no sentence",
    "control characters",
    "left a process",
    "left a file",
    "did not end",
)


@dataclass(frozen=True, slots=True)
class Told:
    """What one input came to."""

    kind: str
    arguments: tuple[str, ...]
    code: int
    faults: tuple[str, ...]
    said: str


def main(count: int, seed: int, out: Path) -> int:
    """Run them all, print a table, write those with a fault; exit 1 where there is one."""
    rows = [tried(one) for one in inputs(seed, count)]
    wrong = [row for row in rows if row.faults]
    out.write_text(json.dumps([asdict(row) for row in wrong], indent=1))
    table = Table("input", "tried", "with a fault", *FAULTS)
    for kind in dict.fromkeys(row.kind for row in rows):
        mine = [row for row in rows if row.kind == kind]
        counted = Counter(fault for row in mine for fault in row.faults)
        failed = sum(bool(row.faults) for row in mine)
        table.add_row(kind, str(len(mine)), str(failed), *(str(counted[fault]) for fault in FAULTS))
    Console(width=200).print(table)
    print(f"{len(rows)} inputs, {len(wrong)} with a fault; exit codes {dict(Counter(row.code for row in rows))}")
    return int(bool(wrong))


def tried(one: Input) -> Told:
    """One input, in a folder of its own that holds its temporary files as well."""
    with tempfile.TemporaryDirectory() as folder:
        here, temporary = Path(folder, "here"), Path(folder, "tmp")
        here.mkdir()
        temporary.mkdir()
        one.make(here)
        before = _files(here)
        state = {"TMPDIR": str(temporary), "XDG_STATE_HOME": str(Path(folder, "state"))}
        environment = one.environment | canary(Path(folder)) | state
        ended = run_command(*one.arguments, here=here, environment=environment)
        found = tuple(_faults(one, ended, Path(folder), before))
    return Told(
        one.kind, tuple(word[:200] for word in one.arguments), ended.code, found, (ended.err + ended.out)[-600:]
    )


def _faults(one: Input, ended: Ended, folder: Path, before: set[Path]) -> list[str]:
    text = ended.out + ended.err
    misuse = ended.code == 2
    sentences = [
        line for line in ended.err.splitlines() if line.strip() and not line.startswith(("plan: reading", "plan: prov"))
    ]
    seen = {
        "ran code": (folder / "canary").exists(),
        "traceback": "Traceback (most recent" in text,
        "called a bug": "bug in shardproof" in text,
        "wrong exit code": ended.code not in one.right,
        "no sentence": (misuse and not sentences) or len(sentences) > (3 if misuse else 40),
        "control characters": any(ord(sign) < 32 and sign not in "\n\t" for sign in text) or "\u202e" in text,
        "left a process": bool(_children(folder)),
        "left a file": ("--output" not in one.arguments and bool(_files(folder / "here") - before))
        or bool(_files(folder / "tmp")),
        "did not end": ended.code < 0,
        "prints code that runs": _runs(one, ended, folder),
    }
    return [fault for fault in FAULTS if seen[fault]]


def _runs(one: Input, ended: Ended, folder: Path) -> bool:
    """Whether the plan that was printed as Python is more than assignments of literals."""
    if one.arguments[0] != "suggest" or ended.code or "--format" in one.arguments:
        return False
    try:
        tree = ast.parse(ended.out)
    except SyntaxError:
        return True
    return any(isinstance(node, ast.Call) for node in ast.walk(tree))


def _files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "__pycache__" not in path.parts}


def _children(folder: Path) -> list[str]:
    """Processes that were started with this input's canary and still live."""
    mark = f"{CANARY}={folder}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if mark in (entry / "environ").read_bytes():
                    found.append(entry.name)
            except OSError:
                continue
    return found
