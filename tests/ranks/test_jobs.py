"""Ranks of a torchrun or Slurm job that is there already, and ranks on several machines (here: one, with two launchers)."""

import os
import socket
import subprocess
import sys

import pytest

from tests.gate import PATH

pytestmark = pytest.mark.timeout(200)
COMMAND = "from shardproof.launch.cli import main; main()"


def started(*arguments: str, **more: str) -> subprocess.Popen[str]:
    """A Python process that sees this checkout, with more in its environment."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": PATH} | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def verify(*arguments: str, **more: str) -> subprocess.Popen[str]:
    return started("-c", COMMAND, "verify", "llama", "--tp", "2", "--level", "run", "-q", *arguments, **more)


def outputs(processes: list[subprocess.Popen[str]]) -> list[str]:
    """What each wrote to stdout; all must end well."""
    ended = [process.communicate(timeout=150) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), [error for _, error in ended]
    return [out for out, _ in ended]


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("localhost", 0))
        return int(made.getsockname()[1])


def test_the_ranks_of_a_torchrun_job_are_used() -> None:
    command = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python", sys.executable)
    arguments = ("-c", COMMAND, "verify", "llama", "--level", "run", "-q")
    (output,) = outputs([started(*command, *arguments)])
    assert output.startswith("llama at tp 2: confirmed")
    assert output.count("llama at tp 2") == 1  # one rank speaks


def test_the_tasks_of_a_slurm_step_are_used() -> None:
    """Plain processes with the variables that srun sets."""
    step = {
        "SLURM_JOB_ID": str(free_port() - 20000),  # the port is made of it
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1",
    }
    tasks = [verify(**step, SLURM_PROCID=str(number), SLURM_LOCALID=str(number)) for number in range(2)]
    first, second = outputs(tasks)
    assert first.startswith("llama at tp 2: confirmed")
    assert second == ""


def test_two_launchers_meet() -> None:
    place = ("--nnodes", "2", "--rdzv-endpoint", f"localhost:{free_port()}", "--node-rank")
    for output in outputs([verify(*place, str(number)) for number in range(2)]):
        assert output.startswith("llama at tp 2: confirmed")
