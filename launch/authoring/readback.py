"""Whether a process that has never seen the old files finds a plan where it was written.

`python -m shardproof.launch.authoring.readback` is that process.
"""

import json
import os
import subprocess
import sys

from shardproof.planner.ir.plan import Plan
from shardproof.planner.loading.load import LoadedModel

_LIMIT = 300.0
"""Seconds. It takes as long as importing torch and building the model without weights."""


def not_carried(loaded: LoadedModel, plan: Plan) -> str | None:
    """Why a fresh process does not find the plan in this model, as the end of a sentence; None where it does."""
    asked = {
        "model": loaded.name,
        "overrides": dict(loaded.overrides),
        "trust_remote_code": loaded.trust_remote_code,
        "plan": plan.to_json(),
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", "shardproof.launch.authoring.readback"],
            input=json.dumps(asked),
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path)},
            capture_output=True,
            text=True,
            check=False,
            timeout=_LIMIT,
        )
    except subprocess.TimeoutExpired:
        return f"the model could not be read again within {_LIMIT:.0f} s."
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return f"the model could not be read again (exit code {done.returncode})."
    answer = json.loads(lines[-1])  # modeling code may print before it
    return answer if isinstance(answer, str) else None


def _main() -> None:
    from shardproof.launch.authoring.write import not_read, overruled
    from shardproof.planner.ir.errors import LoadError
    from shardproof.planner.ir.plan import Plan
    from shardproof.planner.loading.load import build, load, quiet

    asked = json.loads(sys.stdin.read())
    try:
        with quiet():
            loaded = load(asked["model"], overrides=asked["overrides"], trust_remote_code=asked["trust_remote_code"])
            lost = not_read(loaded, build(loaded), Plan.from_json(asked["plan"]))
    except LoadError as error:
        print(json.dumps(f"the model cannot be read again: {error}"))
    else:
        print(json.dumps(overruled(lost) if lost else None))


if __name__ == "__main__":
    _main()
