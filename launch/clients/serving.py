"""vLLM from outside: cases for `vllm_session.py`, which its own interpreter runs, and what it answered."""

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic, sleep

import torch
from transformers import PreTrainedModel

from shardproof.verify.clients import vllm

LIMIT = 1e-3
"""Nats: TP of a right plan differs by about 1e-5 in float32, the smallest fault that was measured by 0.38."""
PROMPTS = ((3, 5, 7, 9, 11), (2, 4, 6))
TOKENS = 4
START = 120.0
"""Seconds for the import of the engine."""


@dataclass(frozen=True, slots=True)
class Case:
    """One checkpoint at one layout, with what is overridden in its config."""

    folder: str
    tp: int = 1
    pp: int = 1
    overrides: Mapping[str, object] = field(default_factory=dict)
    trust_remote_code: bool = True


@dataclass(frozen=True, slots=True)
class Served:
    """One case's answer: the tokens that were generated and every token's log-probability at each step, or an error.

    `held` is the bytes of parameters on the first rank, `rank` the one that failed first, `versions` those of vLLM and of the
    Transformers beside it.
    """

    tokens: tuple[tuple[int, ...], ...] = ()
    logprobs: tuple[torch.Tensor, ...] = ()
    held: int = 0
    error: str = ""
    rank: int | None = None
    trace: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


def serve(python: str, cases: Sequence[Case], *, timeout: float) -> Iterator[Served]:
    """Have vLLM serve every case, one after the other in one session; each is given as it is done.

    Everything that was started is ended when the iterator is. A session that ends early answers the rest with its last word.
    """
    with tempfile.TemporaryDirectory() as held:
        job, out, errors = Path(held) / "job.json", Path(held) / "answers.jsonl", Path(held) / "errors"
        job.write_text(
            json.dumps(
                {
                    "cases": [asdict(case) for case in cases],
                    "prompts": PROMPTS,
                    "tokens": TOKENS,
                    "timeout": timeout,
                    "out": str(out),
                }
            )
        )
        with errors.open("w") as written:
            process = _started(python, job, written.fileno())
        try:
            yield from _answers(process, out, errors, len(cases), timeout)
        finally:
            _end(process)


def _started(python: str, job: Path, errors: int) -> "subprocess.Popen[bytes]":
    script = Path(vllm.__file__).with_name("session.py")
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    return subprocess.Popen(
        [python, str(script), str(job)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        start_new_session=True,
    )


def _answers(
    process: "subprocess.Popen[bytes]", out: Path, errors: Path, count: int, timeout: float
) -> Iterator[Served]:
    given, limit = 0, START + timeout
    last = monotonic()
    while given < count:
        ended = process.poll() is not None
        lines = out.read_text().split("\n")[:-1] if out.is_file() else []
        for line in lines[given:count]:
            yield _served(json.loads(line))
        if len(lines) > given:
            given, last = len(lines), monotonic()
        elif ended or monotonic() - last > limit:
            word = (errors.read_text(errors="replace").strip().splitlines() or ["it ended without a word"])[-1]
            yield from (Served(error=word if ended else "no answer in time") for _ in range(count - given))
            return
        else:
            sleep(0.2)


def _end(process: "subprocess.Popen[bytes]") -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


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
    """The largest difference in log-probability, over the whole vocabulary and every generated step; None for an error."""
    if served.error:
        return None
    worst = 0.0
    for prompt, tokens, rows in zip(PROMPTS, served.tokens, served.logprobs, strict=True):
        ids = torch.tensor([[*prompt, *tokens]])
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0].double()
        expected = torch.log_softmax(logits, dim=-1)[len(prompt) - 1 : -1]
        gaps = (expected - rows[:, : expected.shape[-1]]).abs()
        worst = max(worst, float(gaps.max()) if bool(torch.isfinite(gaps).all()) else float("inf"))
    return worst
