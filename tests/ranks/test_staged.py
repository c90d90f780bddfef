"""The backend of ranks that share a GPU, on the CPU: it copies there too, so every collective of a check goes through it."""

import os
import socket
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, TCPStore

from shardproof.launch.ranks import shared_gpu
from shardproof.planner.inference.suggest import suggest
from shardproof.planner.loading.load import load
from shardproof.planner.twins.twin import twin
from shardproof.verify.run.outcome import Outcome
from shardproof.verify.run.verdicts import findings_of, measures_of
from shardproof.verify.run.worker import check
from shardproof.verify.stages.case import Case

pytestmark = pytest.mark.timeout(240)


def answer(rank: int, size: int, port: int, case: Case) -> Outcome:
    """One rank's outcome, as a process of its own."""
    torch.set_num_threads(1)
    store = TCPStore("localhost", port, size, rank == 0)
    dist.init_process_group(shared_gpu.register(), store=store, rank=rank, world_size=size)
    assert dist.get_backend() == shared_gpu.STAGED
    outcome = check(case, rank=rank, device=torch.device("cpu"))
    dist.barrier()
    dist.destroy_process_group()
    return outcome


def outcomes(case: Case) -> dict[int, Outcome]:
    """What every rank of a case answers over the staged backend."""
    size = case.tp * case.pp
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = int(free.getsockname()[1])
    with ProcessPoolExecutor(size, mp_context=get_context("spawn")) as pool:
        asked = [pool.submit(answer, rank, size, port, case) for rank in range(size)]
        return {rank: one.result(120) for rank, one in enumerate(asked)}


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2)])
def test_every_collective_of_a_check_runs_on_copies(tp: int, pp: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "LOCAL_RANK", "0")
    loaded = load("mixtral")  # packed parameters, experts
    case = Case(twin(loaded, tp=tp, pp=pp), suggest(loaded).plan, tp, pp)
    given = outcomes(case)
    assert findings_of(case, given) == ()
    assert max(measures_of(case, given).values()) < 1e-12


def test_an_input_comes_back_as_it_was() -> None:
    """What a collective reads is copied, and is no change that autograd counts."""
    weight = torch.ones(2, requires_grad=True)
    squared = weight**2
    dist.init_process_group(shared_gpu.register(), store=HashStore(), rank=0, world_size=1)
    gathered = torch.zeros(2)
    dist.all_gather_into_tensor(gathered, weight)
    dist.destroy_process_group()
    squared.sum().backward()
    assert weight.grad is not None
    assert gathered.tolist() == [1.0, 1.0]
    assert weight.grad.tolist() == [2.0, 2.0]
