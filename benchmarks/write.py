"""`plan suggest --write` on every causal-LM type, on a copy of Transformers: it still imports, carries the plan, and a second
run changes nothing.

One process writes all plans into the copy; another, which has never seen the old files, imports them and looks.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.types import causal_types
from tests.gate import PATH, ROOT

BATCH = 8
"""Types that share a process: a start costs as much as a few small types."""
LIMIT = 180.0
"""Seconds for a type, of a batch in all."""


def main(types: tuple[str, ...], out: Path, *, tp: int) -> int:
    """Go over the types that `out` does not hold yet, and print a table of all; 1 where a plan that was written is not carried.

    `out` is JSON lines, one a type, added to after every batch: a run that was cut off goes on where it was.
    """
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    known = {row["type"] for row in rows}
    left = [name for name in types or causal_types() if name not in known]
    with tempfile.TemporaryDirectory() as folder:
        copy = _copied(Path(folder)) if left else Path(folder)
        while left:
            found = _batch(Path(folder), copy, left[:BATCH])
            with out.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in found)
            rows += found
            left = left[len(found) :]
    Console().print(_table(rows))
    return int(any(row["outcome"] in ("not carried", "does not import") for row in rows))


def _batch(folder: Path, copy: Path, types: list[str]) -> list[dict[str, object]]:
    """One row for each of the first types: all of them, or those up to one that ended its process."""
    written = folder / "written.jsonl"
    written.unlink(missing_ok=True)
    for stage in ("write", "check"):
        ended = _stage(stage, folder, copy, types)
        done = [json.loads(line)["type"] for line in written.read_text().splitlines()] if written.exists() else []
        if ended and stage == "write":
            row = {"type": types[len(done)], "none": f"its process ended: {ended}"}
            with written.open("a") as file:
                file.write(json.dumps(row) + "\n")
        elif ended:
            raise RuntimeError(f"the check of {', '.join(types)} ended: {ended}")
    rows: list[dict[str, object]] = json.loads((folder / "checked.json").read_text())
    return rows


def _stage(stage: str, folder: Path, copy: Path, types: list[str]) -> str | None:
    """Run one stage in a process of its own; why it ended early, if it did."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.write", stage, str(folder), *types],
            env=os.environ | {"PYTHONPATH": f"{copy}{os.pathsep}{PATH}"},
            cwd=ROOT,
            check=False,
            timeout=LIMIT * len(types),
        )
    except subprocess.TimeoutExpired:
        return "too slow"
    return f"exit code {done.returncode}" if done.returncode else None


def _copied(folder: Path) -> Path:
    """A folder that holds a copy of the installed Transformers, without what was compiled."""
    import transformers

    assert transformers.__file__ is not None
    shutil.copytree(
        Path(transformers.__file__).parent,
        folder / "copy" / "transformers",
        ignore=shutil.ignore_patterns("__pycache__", "*.pyc"),
    )
    return folder / "copy"


def write(folder: Path, types: list[str]) -> None:
    """Infer and write each type's plan; what was written, and what could not be inferred, goes to `written.jsonl` at once.

    Stops before a type whose file an earlier one of these has changed: two types may have one config class, and a plan each.
    """
    from shardproof.launch.authoring.plan_attributes import changes, write_plan
    from shardproof.launch.result import MisuseError
    from shardproof.planner.inference.suggest import suggest
    from shardproof.planner.loading.build import build
    from shardproof.planner.loading.load import load

    os.environ["XDG_STATE_HOME"] = str(folder / "state")
    touched: set[Path] = set()
    for name in types:
        row: dict[str, object]
        try:
            loaded = load(name)
            plan = suggest(loaded).plan
            files = {change.file for change in changes(loaded, build(loaded), plan)}
            if files & touched:
                return
            touched |= files
            written = write_plan(loaded, build(loaded), plan)
            row = {"plan": plan.to_json(), "lines": written.diff.count("\n")}
        except MisuseError as error:
            row = {"refused": str(error)}
        except Exception as error:  # what cannot be inferred is another benchmark's question
            row = {"none": f"{type(error).__name__}: {error}"[:200]}
        with (folder / "written.jsonl").open("a") as file:
            file.write(json.dumps({"type": name, **row}) + "\n")


def check(folder: Path) -> None:
    """Whether each type imports, carries what was written, and would not be written again."""
    from shardproof.launch.authoring.plan_attributes import changes, not_read
    from shardproof.planner.ir.plan import Plan
    from shardproof.planner.loading.build import build
    from shardproof.planner.loading.load import load

    checked = []
    for line in (folder / "written.jsonl").read_text().splitlines():
        row = json.loads(line)
        name, note = row["type"], row.get("refused") or row.get("none") or ""
        outcome = "refused" if "refused" in row else "no plan"
        if "plan" in row:
            try:
                loaded, plan = load(name), Plan.from_json(row["plan"])
                model = build(loaded)
                again = [f"{one.class_name}.{key}" for one in changes(loaded, model, plan) for key in one.attributes]
                left = again or not_read(loaded, model, plan)
                outcome = "not carried" if left else "carried" if row["lines"] else "carried before"
                note = ", ".join(left)
            except Exception as error:  # any failure to import is the finding
                outcome, note = "does not import", f"{type(error).__name__}: {error}"[:200]
        checked.append({"type": name, "outcome": outcome, "note": note, "lines": row.get("lines", 0)})
    (folder / "checked.json").write_text(json.dumps(checked))


def _table(rows: list[dict[str, object]]) -> Table:
    table = Table("outcome", "types", "of them", title=f"--write on {len(rows)} types")
    for outcome in dict.fromkeys(str(row["outcome"]) for row in rows):
        mine = [row for row in rows if row["outcome"] == outcome]
        named = "" if outcome.startswith("carried") else ", ".join(f"{row['type']} ({row['note']})" for row in mine)
        table.add_row(outcome, str(len(mine)), named)
    return table


if __name__ == "__main__":
    stage, where, *names = sys.argv[1:]
    if stage == "write":
        write(Path(where), names)
    else:
        check(Path(where))
