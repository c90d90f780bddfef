"""The script that `launch.torchrun` starts: torch's elastic launcher, with the ranks forked after the imports.

Usage: python -P elastic.py DIRECTORY. Reads `request` there, writes one outcome file per case and rank, and
`deaths.json`.
It ends itself and all its ranks when its standard input closes: that is when the process that started it is gone.
"""

import json
import os
import shutil
import signal
import sys
import threading
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from transformers.utils import logging

from launch.ranks import Seat, surrounding
from launch.request import read_request
from verify.dynamic.outcome import Outcome


def main(directory: Path) -> None:
    """Run the ranks; the process group of this process is its own, so that it can be ended whole."""
    request = read_request(directory)
    threading.Thread(target=_end_with_parent, args=(directory,), daemon=True).start()
    logs = directory / "logs"
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=request.ranks,
        run_id=directory.name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="fork",
        logs_specs=DefaultLogsSpecs(log_dir=str(logs), redirects=Std.ALL),
    )
    try:
        elastic_launch(config, serve)(str(directory))
    except ChildFailedError as error:
        deaths = {rank: [death.timestamp, death.exitcode] for rank, death in error.failures.items()}
        (directory / "deaths.json").write_text(json.dumps(deaths))
        sys.exit(1)


def serve(directory: str) -> None:
    """One rank: every case in turn; the rank leaves where another has not answered, since the group is then lost."""
    for inherited in (signal.SIGTERM, signal.SIGINT):  # the launcher's handlers came with the fork; a rank just ends
        signal.signal(inherited, signal.SIG_DFL)
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    request = read_request(Path(directory))
    world = surrounding()
    assert world is not None, "torch's launcher sets RANK and WORLD_SIZE"
    seat = Seat(world, timeout=request.timeout)
    for number, case in enumerate(request.cases):
        path = Path(directory) / f"outcome-{number}-{world.rank}.json"
        outcomes = seat.answer(case, number, heard=partial(_write, path))
        if len(outcomes) < world.size:
            sys.stdout.flush()
            os._exit(1)  # not sys.exit: a collective may be stuck, and joining its threads would wait for it
    assert not dist.is_initialized()


def _write(path: Path, outcome: Outcome) -> None:
    """Whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(outcome.dumps())
    part.rename(path)


def _end_with_parent(directory: Path) -> None:
    while os.read(0, 1):  # not sys.stdin: its lock, held here, would block the forked ranks, which close it
        pass
    shutil.rmtree(directory, ignore_errors=True)
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
