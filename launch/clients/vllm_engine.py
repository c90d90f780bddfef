"""vLLM in its own environment: checkpoints that `verify/clients/vllm/session.py` serves there, and what the engine generated."""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic
from types import TracebackType

import torch
from transformers import PreTrainedModel

from shardproof.launch.processes.first_cause import PEER_ERRORS, last_line
from shardproof.launch.processes.supervise import Stopped, child_process, client_environment, script_in, wait_for
from shardproof.verify.clients import vllm

LIMIT = 1e-3
"""Nats: with a right plan TP differs by about 1e-5 in float32; the smallest fault that was measured differs by 0.38."""
PROMPTS = ((3, 5, 7, 9, 11), (2, 4, 6))
TOKENS = 4
START = 120.0
"""Seconds for the import of the engine."""


@dataclass(frozen=True, slots=True)
class ServedCheckpoint:
    """A checkpoint folder to be served with `tp` x `pp` ranks, and the config fields that are overridden."""

    folder: str
    tp: int = 1
    pp: int = 1
    overrides: Mapping[str, object] = field(default_factory=dict)
    trust_remote_code: bool = True


@dataclass(frozen=True, slots=True)
class Served:
    """What the engine generated from one checkpoint, or an error.

    `tokens` has the generated ids of each prompt, `logprobs` one tensor [steps, vocabulary] for each prompt. `held` is the
    bytes of parameters on the first rank, `rank` the rank that failed first, `versions` those of vLLM and of the Transformers
    beside it.
    """

    tokens: tuple[tuple[int, ...], ...] = ()
    logprobs: tuple[torch.Tensor, ...] = ()
    held: int = 0
    error: str = ""
    rank: int | None = None
    trace: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


class VllmEngine:
    """One session of vLLM, by the Python interpreter of its environment; `timeout` is in seconds, for one checkpoint."""

    def __init__(self, python: str, *, timeout: float) -> None:
        self.python, self.timeout = python, timeout
        self._life = ExitStack()

    def __enter__(self) -> "VllmEngine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._life.close()

    def run(self, cases: Sequence[ServedCheckpoint]) -> Iterator[Served]:
        """One result for each checkpoint, in order; where the session ends early, the others have the last line that it wrote."""
        folder = Path(self._life.enter_context(tempfile.TemporaryDirectory()))
        job, out, log = folder / "job.json", folder / "answers.jsonl", folder / "errors"
        fields = {"prompts": PROMPTS, "tokens": TOKENS, "timeout": self.timeout, "peer_errors": PEER_ERRORS}
        job.write_text(json.dumps({**fields, "cases": [asdict(case) for case in cases], "out": str(out)}))
        errors = self._life.enter_context(log.open("w")).fileno()
        script = Path(vllm.__file__).with_name("session.py")
        command = script_in(self.python, script, str(job))
        environment = client_environment(self.python)
        process = self._life.enter_context(child_process(command, environment=environment, stderr=errors))
        for number in range(len(cases)):
            until = monotonic() + START + self.timeout
            line = wait_for(partial(_line, out, number), (process,), until=until, poll=0.2)
            if isinstance(line, Stopped):
                ended = line is Stopped.ENDED
                error = last_line(log, absent="it ended without a word") if ended else "no answer in time"
                yield from (Served(error=error) for _ in range(number, len(cases)))
                return
            yield _served(json.loads(line))


def _line(file: Path, number: int) -> str | None:
    """A line of a file, once it is complete."""
    lines = file.read_text().split("\n")[:-1] if file.is_file() else []
    return lines[number] if number < len(lines) else None


def _served(answer: Mapping[str, object]) -> Served:
    tokens, rows, held, rank, given = (answer.get(key) for key in ("tokens", "logprobs", "held", "rank", "versions"))
    versions = given if isinstance(given, dict) else {}
    if not isinstance(tokens, list) or not isinstance(rows, list):
        return Served(
            error=str(answer.get("error", "no answer")),
            rank=rank if isinstance(rank, int) else None,
            trace=str(answer.get("trace", "")),
            versions=versions,
        )
    return Served(
        tuple(map(tuple, tokens)),
        tuple(torch.tensor(row, dtype=torch.float64) for row in rows),
        held if isinstance(held, int) else 0,
        versions=versions,
    )


def difference(model: PreTrainedModel, served: Served) -> float | None:
    """The largest difference in log-probability (nats), over the vocabulary and every generated step; None for an error."""
    if served.error:
        return None
    worst = 0.0
    for prompt, tokens, rows in zip(PROMPTS, served.tokens, served.logprobs, strict=True):
        ids = torch.tensor([[*prompt, *tokens]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0].double()
        expected = torch.log_softmax(logits, dim=-1)[len(prompt) - 1 : -1]
        gaps = (expected - rows[:, : expected.shape[-1]]).abs()
        worst = max(worst, float(gaps.max()) if bool(torch.isfinite(gaps).all()) else float("inf"))
    return worst
