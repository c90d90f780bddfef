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

from tests.bench.types import causal_types

ROOT = Path(__file__).parents[2]


def main(types: tuple[str, ...], out: Path, *, tp: int) -> int:
    """Prints a table and writes the rows; 1 where a plan that was written is not what the model then carries."""
    with tempfile.TemporaryDirectory() as folder:
        copy = _copied(Path(folder))
        for stage in ("write", "check"):
            subprocess.run(
                [sys.executable, "-m", "tests.bench.write", stage, folder, *(types or causal_types())],
                env=os.environ | {"PYTHONPATH": f"{copy}{os.pathsep}{ROOT}"},
                cwd=ROOT,
                check=True,
            )
        rows = json.loads((Path(folder) / "checked.json").read_text())
    out.write_text(json.dumps(rows, indent=1))
    Console().print(_table(rows))
    return int(any(row["outcome"] in ("not carried", "does not import") for row in rows))


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
    """Infer and write each type's plan; what was written, and what could not be inferred, goes to `written.json`."""
    from launch.answers import MisuseError
    from launch.authoring import write_plan
    from planner.api import suggest
    from planner.frontend.load import build, load

    os.environ["XDG_STATE_HOME"] = str(folder / "state")
    rows: dict[str, dict[str, object]] = {}
    for name in types:
        try:
            loaded = load(name)
            plan = suggest(loaded).plan
            written = write_plan(loaded, build(loaded), plan)
            rows[name] = {"plan": plan.to_json(), "lines": written.diff.count("\n")}
        except MisuseError as error:
            rows[name] = {"refused": str(error)}
        except Exception as error:  # what cannot be inferred is another benchmark's question
            rows[name] = {"none": f"{type(error).__name__}: {error}"[:200]}
    (folder / "written.json").write_text(json.dumps(rows))


def check(folder: Path) -> None:
    """Whether each type imports, carries what was written, and would not be written again."""
    from launch.authoring import changes
    from planner.frontend.load import build, load
    from planner.ir.plan import plan_from_json

    checked = []
    for name, row in json.loads((folder / "written.json").read_text()).items():
        note = row.get("refused") or row.get("none") or ""
        outcome = "refused" if "refused" in row else "no plan"
        if "plan" in row:
            try:
                loaded = load(name)
                left = changes(loaded, build(loaded), plan_from_json(row["plan"]))
                outcome = "not carried" if left else "carried" if row["lines"] else "carried before"
                note = ", ".join(f"{change.class_name}.{key}" for change in left for key in change.attributes)
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
