"""The script that `launch.ranks.torchrun` starts: torch's elastic launcher, with the ranks forked after the imports (with a
GPU they are spawned: a forked process cannot use CUDA).

Usage: python -P elastic.py DIRECTORY. It reads `start` in the directory; the ranks run `request-0`, `request-1`, ... as these
files appear, until there is a file `end`. Every rank writes one outcome file for each case, and a `ready` file if it stays for
the next case; `deaths.json` lists the ranks that died, and how. The launcher ends itself and all its ranks when its standard
input closes, which it does when the process that started it is gone.
"""

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from transformers.utils import logging

from shardproof.launch.processes.first_cause import last_line
from shardproof.launch.ranks.job import surrounding
from shardproof.launch.ranks.rank import RankSlot
from shardproof.launch.ranks.request import Request, Start, read_request, read_start
from shardproof.launch.ranks.runner import CANNOT_WRITE
from shardproof.verify.run.outcome import Outcome

POLL = 0.01
"""Seconds between two looks for the next request."""


def main(directory: Path) -> None:
    """Run the ranks; the process group of this process is its own, so that it can be ended whole."""
    threading.Thread(target=_end_with_parent, args=(directory,), daemon=True).start()
    try:
        elastic_launch(_config(read_start(directory), directory), serve)(str(directory))
    except ChildFailedError as error:
        deaths = {
            rank: [death.timestamp, death.exitcode, _last_words(directory, death.local_rank)]
            for rank, death in error.failures.items()
        }
        (directory / "deaths.json").write_text(json.dumps(deaths))
        sys.exit(1)


def _config(start: Start, directory: Path) -> LaunchConfig:
    nodes = start.nodes
    return LaunchConfig(
        min_nodes=nodes.count,
        max_nodes=nodes.count,
        nproc_per_node=start.ranks // nodes.count,
        run_id=directory.name if nodes.count == 1 else "shardproof",
        rdzv_backend="c10d",
        rdzv_endpoint=nodes.endpoint,
        rdzv_configs={}
        if nodes.count == 1
        else {"is_host": nodes.this == 0, "join_timeout": max(int(start.timeout), 1)},
        max_restarts=0,
        monitor_interval=0.1,
        start_method="spawn" if torch.cuda.is_available() else "fork",  # a forked process can use no GPU
        logs_specs=DefaultLogsSpecs(log_dir=str(directory / "logs"), redirects=Std.ALL),
    )


def _last_words(directory: Path, local_rank: int) -> str:
    """The last line that a rank wrote to its standard error: of one that raised, the exception."""
    logs = sorted((directory / "logs").glob(f"*/attempt_*/{local_rank}/stderr.log"))
    return last_line(logs[-1]) if logs else ""


def serve(directory: str) -> None:
    """One rank: it runs every case, and exits where another rank has not answered, since the group is then lost."""
    for inherited in (signal.SIGTERM, signal.SIGINT):  # the launcher's handlers came with the fork; a rank just ends
        signal.signal(inherited, signal.SIG_DFL)
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    world = surrounding()
    assert world is not None, "torch's launcher sets RANK and WORLD_SIZE"
    slot = RankSlot(world, timeout=read_start(Path(directory)).timeout)
    (Path(directory) / f"met-{world.rank}").touch()
    for request in _requests(Path(directory)):
        for number, case in enumerate(request.cases, request.first):
            path = Path(directory) / f"outcome-{number}-{world.rank}.json"
            outcomes, together = slot.run(case, number, write=partial(_write, path))
            if world.local_rank == 0:
                _write_of_other_nodes(Path(directory), number, outcomes)
            if together:
                (Path(directory) / f"ready-{number}-{world.rank}").touch()
            else:
                sys.stdout.flush()
                os._exit(1)  # not sys.exit: a collective may be stuck, and joining its threads would wait for it
    assert not dist.is_initialized()


def _requests(directory: Path) -> Iterator[Request]:
    number = 0
    while True:
        if (request := read_request(directory, number)) is not None:
            number += 1
            yield request
        elif (directory / "end").exists():
            return
        else:
            time.sleep(POLL)


def _write_of_other_nodes(directory: Path, number: int, outcomes: dict[int, Outcome]) -> None:
    """The process that wrote the request reads files of its own machine only."""
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    first = int(os.environ["GROUP_RANK"]) * local
    for rank, outcome in outcomes.items():
        if not first <= rank < first + local:
            _write(directory / f"outcome-{number}-{rank}.json", outcome)


def _write(path: Path, outcome: Outcome) -> None:
    """Atomically, since the file is read as soon as it is there."""
    part = path.with_suffix(".part")
    try:
        part.write_text(outcome.dumps())
        part.rename(path)
    except OSError:
        os._exit(CANNOT_WRITE)


def _end_with_parent(directory: Path) -> None:
    while os.read(0, 1):  # not sys.stdin: its lock, held here, would block the forked ranks, which close it
        pass
    shutil.rmtree(directory, ignore_errors=True)
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
