"""Clients that train or generate on ranks: each rank is a session script of `verify/clients` in the client's interpreter."""

import json
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from types import TracebackType

from shardproof.launch.processes.first_cause import RankError, first_cause, last_line
from shardproof.launch.processes.supervise import Child, Stopped, child_process, client_environment, script_in, wait_for
from shardproof.verify.clients import deepspeed, nemo, sglang, torchtitan, transformers

CLIENTS = ("transformers", "accelerate", "trl", "parallelize", "torchtitan", "deepspeed", "nemo", "sglang")
"""What the sessions run; `parallelize` is torch's own `parallelize_module`, and an optimizer."""
_PACKAGES = {"deepspeed": deepspeed, "nemo": nemo, "sglang": sglang, "torchtitan": torchtitan}
"""Clients with a session of their own."""
GRACE = 1.0
"""Seconds that the other ranks get, once one has failed, to write down why they failed."""


@dataclass(frozen=True, slots=True)
class ClientStep:
    """One comparison: a checkpoint folder, one of `CLIENTS`, a plan (pattern, as the head model has it -> style), and the TP
    degree.
    """

    folder: Path
    client: str
    plan: Mapping[str, str]
    degree: int
    tensor_parallel: Mapping[str, object] | None = None
    """A section of a DeepSpeed config, whose `partition_config` takes the place of the plan."""
    recipe_plan: str | None = None
    """Python that makes a `PLAN` of torch's styles, which NeMo gets as the `tp_plan` of its recipe."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """The largest difference from one device, by what was compared; or the error that came first."""

    differences: Mapping[str, float] = field(default_factory=dict)
    error: str = ""


class ClientRanks:
    """Ranks in an environment that has the client; `timeout` is in seconds, for one step."""

    def __init__(self, python: str | None = None, *, timeout: float = 300.0) -> None:
        self.python, self.timeout = python or sys.executable, timeout

    def __enter__(self) -> "ClientRanks":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The ranks of a step end with it."""

    def run(self, cases: Sequence[ClientStep]) -> Iterator[StepResult]:
        """One result for each step, in order; the ranks of each start anew."""
        for case in cases:
            yield self._result(case)

    def _result(self, case: ClientStep) -> StepResult:
        out = case.folder / "found.json"
        with ExitStack() as life:
            ranks = self._started(case, out, life)
            end = monotonic() + self.timeout
            failed = wait_for(lambda: _failed(out, ranks) or None, ranks, until=end, poll=0.1)
            if failed is Stopped.LATE:
                return StepResult(error=f"no answer within {self.timeout:g} s")
            if failed is True:
                wait_for(lambda: None, ranks, until=min(end, monotonic() + GRACE))
            codes = ", ".join(str(rank.poll()) for rank in ranks)
        if failed is Stopped.ENDED and out.is_file():
            return StepResult(json.loads(out.read_text())["differences"])
        errors = _errors(out)
        if errors:
            return StepResult(error=first_cause(errors).text)
        words = next(filter(None, (last_line(_log(out, rank)) for rank in range(case.degree))), "without a word")
        return StepResult(error=f"ranks ended with {codes}, {words}")

    def _started(self, case: ClientStep, out: Path, life: ExitStack) -> list[Child]:
        job = case.folder / "job.json"
        fields = {"folder": str(case.folder), "client": case.client, "plan": dict(case.plan), "degree": case.degree}
        if case.tensor_parallel is not None:
            fields["tensor_parallel"] = dict(case.tensor_parallel)
        if case.recipe_plan is not None:
            fields["recipe_plan"] = case.recipe_plan
        job.write_text(json.dumps({**fields, "out": str(out)}))
        package = _PACKAGES.get(case.client, transformers)
        command = script_in(self.python, Path(str(package.__file__)).with_name("session.py"), str(job))
        world = {"WORLD_SIZE": str(case.degree), "LOCAL_WORLD_SIZE": str(case.degree)}
        rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        common = client_environment(self.python) | world | rendezvous
        return [
            life.enter_context(
                child_process(
                    command,
                    environment={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stderr=life.enter_context(_log(out, rank).open("w")).fileno(),
                )
            )
            for rank in range(case.degree)
        ]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _log(out: Path, rank: int) -> Path:
    return out.with_name(f"errors-{rank}.log")


def _failed(out: Path, ranks: Sequence[Child]) -> bool:
    """Whether a rank wrote an error, or ended with one."""
    return bool(_errors(out)) or any(rank.poll() for rank in ranks)


def _errors(out: Path) -> list[RankError]:
    """The errors that ranks wrote down."""
    errors = []
    for file in out.parent.glob(f"{out.name}.*"):
        try:
            fields = json.loads(file.read_text())
        except (ValueError, FileNotFoundError):  # it is being written
            continue
        errors.append(RankError(int(fields["rank"]), file.stat().st_mtime, str(fields["error"])))
    return errors
