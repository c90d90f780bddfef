"""Transformers' own clients from outside: ranks that run `ranks_session.py` in the client's interpreter, and what they found."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

from shardproof.verify.clients import transformers

CLIENTS = ("transformers", "accelerate", "trl", "torchtitan")
"""What `ranks_session.py` runs; torchtitan as its steps: torch's own `parallelize_module`, and an optimizer."""


def step(
    client: str,
    folder: Path,
    plan: Mapping[str, str],
    degree: int,
    *,
    python: str | None = None,
    timeout: float = 300.0,
) -> tuple[dict[str, float], str]:
    """What differs from one device, by name; or the first error. Everything that was started is ended.

    Args:
        client: one of `CLIENTS`.
        folder: a checkpoint.
        plan: keys as the head model sees them -> styles.
        degree: tensor-parallel ranks.
        python: the interpreter that has the client; this one by default.
        timeout: seconds for all of it.
    """
    job, out = folder / "job.json", folder / "found.json"
    job.write_text(
        json.dumps(
            {"folder": str(folder), "client": client, "plan": dict(plan), "degree": degree, "out": str(out)},
        )
    )
    ranks = _started(python or sys.executable, job, degree)
    ends = monotonic() + timeout
    try:
        while any(rank.poll() is None for rank in ranks) and monotonic() < ends:
            if (told := _errors(out)) or any(rank.poll() for rank in ranks):
                sleep(1.0)
                return {}, _first(told or _errors(out), ranks)
            sleep(0.1)
    finally:
        for rank in ranks:
            _end(rank)
    if out.is_file():
        return json.loads(out.read_text())["differences"], ""
    return {}, _first(_errors(out), ranks) if monotonic() < ends else f"no answer within {timeout:g} s"


def _started(python: str, job: Path, degree: int) -> list["subprocess.Popen[bytes]"]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = Path(transformers.__file__).with_name("session.py")
    common = {
        "WORLD_SIZE": str(degree),
        "LOCAL_WORLD_SIZE": str(degree),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return [
        subprocess.Popen(
            [python, str(script), str(job)],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for rank in range(degree)
    ]


def _errors(out: Path) -> list[str]:
    """What ranks wrote down, the first cause first: a rank that lost its peer fails later."""
    files = sorted(out.parent.glob(f"{out.name}.*"), key=lambda file: file.stat().st_mtime)
    found = [str(json.loads(file.read_text() or '{"error": ""}')["error"]) for file in files]
    return sorted((text for text in found if text), key=lambda text: "closed by peer" in text)


def _first(told: list[str], ranks: list["subprocess.Popen[bytes]"]) -> str:
    codes = [rank.poll() for rank in ranks]
    return told[0] if told else f"ranks ended with {', '.join(str(code) for code in codes)}, without a word"


def _end(rank: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(rank.pid, signal.SIGKILL)
    rank.wait()
