"""Read a written plan back in a fresh process, which imports the files as they are now.

`python -P -m shardproof.launch.authoring.read_back` is that process.
"""

import json
import sys

from shardproof.launch.processes.supervise import output_of, own_environment
from shardproof.planner.ir.plan import Plan
from shardproof.planner.loading.load import LoadedModel

_LIMIT = 300.0
"""Seconds. It takes as long as importing torch and building the model without weights."""


def not_carried(loaded: LoadedModel, plan: Plan) -> str | None:
    """Why a fresh process does not find the plan in this model, as the end of a sentence; None where it finds it."""
    request = {
        "model": loaded.name,
        "overrides": dict(loaded.overrides),
        "trust_remote_code": loaded.trust_remote_code,
        "plan": plan.to_json(),
    }
    command = [sys.executable, "-P", "-m", "shardproof.launch.authoring.read_back"]
    done = output_of(command, environment=own_environment(), text=json.dumps(request), timeout=_LIMIT)
    if done is None:
        return f"the model could not be read again within {_LIMIT:.0f} s."
    code, output = done
    lines = output.splitlines()
    if code or not lines:
        return f"the model could not be read again (exit code {code})."
    problem = json.loads(lines[-1])  # modeling code may print before it
    return problem if isinstance(problem, str) else None


def _main() -> None:
    from shardproof.launch.authoring.plan_attributes import not_read, overruled
    from shardproof.planner.ir.errors import LoadError
    from shardproof.planner.ir.plan import Plan
    from shardproof.planner.loading.build import build
    from shardproof.planner.loading.load import load
    from shardproof.planner.loading.quiet import quiet

    request = json.loads(sys.stdin.read())
    try:
        with quiet():
            loaded = load(
                request["model"], overrides=request["overrides"], trust_remote_code=request["trust_remote_code"]
            )
            lost = not_read(loaded, build(loaded), Plan.from_json(request["plan"]))
    except LoadError as error:
        print(json.dumps(f"the model cannot be read again: {error}"))
    else:
        print(json.dumps(overruled(lost) if lost else None))


if __name__ == "__main__":
    _main()
