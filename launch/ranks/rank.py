"""One rank: it joins a process group, runs cases in it, and reads the outcomes of the other ranks.

Outcomes travel through the store of the rendezvous, not through collectives: the outcome of a rank that failed can still be
read, and no rank waits for it in vain.
"""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from zlib import crc32

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from shardproof.launch.ranks import shared_gpu
from shardproof.launch.ranks.job import World
from shardproof.planner.loading.quiet import quiet
from shardproof.verify.run.outcome import Outcome, outcome_from
from shardproof.verify.run.worker import check
from shardproof.verify.stages.case import Case

GRACE = 5.0
"""Seconds that the other ranks get to answer once a rank has failed."""
PATIENCE = 0.8
"""Share of a case's time limit that a collective may wait: a rank that waits in vain can then still report that in time."""


def set_torch_variables(world: World) -> None:
    """Set the variables that torch reads in a Slurm task; under torchrun they are set already."""
    found = {
        "RANK": str(world.rank),
        "WORLD_SIZE": str(world.size),
        "LOCAL_RANK": str(world.local_rank),
        "MASTER_ADDR": os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "localhost"),
        "MASTER_PORT": str(20000 + crc32(os.environ.get("SLURM_JOB_ID", "").encode()) % 20000),
    }
    for name, value in found.items():
        os.environ.setdefault(name, value)


def device_and_backend(world: World) -> tuple[torch.device, str]:
    """The device of this rank, and nccl where each rank has a GPU, gloo on copies where ranks share one, gloo on the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu"), "gloo"
    own = torch.cuda.device_count() >= world.local_size
    index = world.local_rank if own else world.local_rank % torch.cuda.device_count()
    os.environ["LOCAL_RANK"] = str(index)  # the client binds the GPU of this number
    torch.cuda.set_device(index)
    return torch.device("cuda", index), "nccl" if own else shared_gpu.register()


class RankSlot:
    """This process as one of the ranks: the store that they share, and a fresh process group for each case."""

    def __init__(self, world: World, *, timeout: float) -> None:
        self.world = world
        self.timeout = timedelta(seconds=timeout)
        self.patience = timedelta(seconds=PATIENCE * timeout)
        self.device, self.backend = device_and_backend(world)
        self.store, _, _ = next(rendezvous("env://", world.rank, world.size, timeout=self.timeout))
        self.store.set_timeout(self.timeout)

    def run(self, case: Case, number: int, *, write: Callable[[Outcome], None]) -> tuple[dict[int, Outcome], bool]:
        """Run one case; give the outcomes by rank, and whether all ranks stay together for another case.

        `number` is the same on every rank, and of no other case of this job. `write` gets this rank's own outcome before the
        others are waited for. A rank that does not answer in time is absent.
        """
        store = PrefixStore(f"case{number}", self.store)
        dist.init_process_group(
            self.backend, store=store, rank=self.world.rank, world_size=self.world.size, timeout=self.patience
        )
        began = time.process_time()
        with quiet():
            mine = check(case, rank=self.world.rank, device=self.device)
        mine = replace(mine, cpu_seconds=time.process_time() - began)
        write(mine)
        store.set(f"outcome{self.world.rank}", mine.dumps())
        outcomes = self._gather(store, mine)
        together = self._stay_together(store, complete=len(outcomes) == self.world.size)
        if together:
            dist.destroy_process_group()
        return outcomes, together

    def _gather(self, store: Store, mine: Outcome) -> dict[int, Outcome]:
        """Every rank's outcome; once any rank has failed, the others get `GRACE` seconds to answer."""
        outcomes = {self.world.rank: mine}
        end = time.monotonic() + self.timeout.total_seconds()
        shortened = False
        while len(outcomes) < self.world.size and time.monotonic() < end:
            if not shortened and any(outcome.failure for outcome in outcomes.values()):
                shortened, end = True, min(end, time.monotonic() + GRACE)
            for rank in range(self.world.size):
                if rank not in outcomes and store.check([f"outcome{rank}"]):
                    outcomes[rank] = outcome_from(store.get(f"outcome{rank}").decode())
            time.sleep(0.01)
        return outcomes

    def _stay_together(self, store: Store, *, complete: bool) -> bool:
        """One decision for all ranks: true where each has all outcomes, false where one has given up waiting.

        The store keeps the first of the two decisions: where a rank gives up just before the last outcome comes, the others read
        that it left.
        """
        if complete and store.add("complete", 1) == self.world.size:
            store.compare_set("fate", "", "together")
        elif not complete:
            store.compare_set("fate", "", "apart")
        return bool(store.get("fate") == b"together")
