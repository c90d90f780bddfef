"""Models whose sharded forward goes wrong in every way a rank can; the single-device model runs."""

import os
import resource
import signal
import time
from enum import StrEnum
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

from shardproof.planner.loading.load import LoadedModel


class Fault(StrEnum):
    """What one rank does; the others go on, and wait for it in their next collective."""

    RAISES = "raises"
    EXITS = "exits"
    IS_KILLED = "is killed"
    STOPS = "stops"
    LOOPS = "loops"
    RUNS_OUT_OF_MEMORY = "runs out of memory"
    HITS_A_LIMIT = "hits a limit"
    CALLS_ONE_MORE = "calls one collective more"
    CALLS_ONE_LESS = "calls one collective less"


class FaultyConfig(LlamaConfig):
    model_type = "faulty_llama"
    fault: str = ""
    rank: int = 0
    after: int = 0


class Faulty(LlamaForCausalLM):
    """After `config.after` forwards of the sharded model, rank `config.rank` does what `config.fault` says."""

    config_class = FaultyConfig

    def forward(self, input_ids=None, use_cache=None, **kwargs):  # type: ignore[no-untyped-def]  # as its base
        if getattr(self, "_tp_size", None):
            self.calls = getattr(self, "calls", -1) + 1
            if self.calls == self.config.after and dist.get_rank() == self.config.rank:
                commit(Fault(self.config.fault), input_ids.shape)
        return super().forward(input_ids=input_ids, use_cache=use_cache, **kwargs)


def commit(fault: Fault, shape: torch.Size) -> None:
    """Do it."""
    match fault:
        case Fault.RAISES:
            raise RuntimeError("this rank has had enough")
        case Fault.EXITS:
            os._exit(7)
        case Fault.IS_KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
        case Fault.STOPS:
            os.kill(os.getpid(), signal.SIGSTOP)
        case Fault.LOOPS:
            while True:
                time.sleep(0.05)
        case Fault.RUNS_OUT_OF_MEMORY:
            raise MemoryError(f"no room for {tuple(shape)}")
        case Fault.HITS_A_LIMIT:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
            torch.empty(2**31, dtype=torch.uint8).fill_(1)
        case Fault.CALLS_ONE_MORE:
            dist.all_reduce(torch.zeros(3))
        case Fault.CALLS_ONE_LESS:
            real = dist.all_reduce

            def nothing(*_: object, **__: object) -> None:
                dist.all_reduce = real  # once only

            dist.all_reduce = nothing


def faulty(fault: Fault, *, rank: int = 1, after: int = 0) -> LoadedModel:
    """A model with this fault."""
    return LoadedModel(fault.value, FaultyConfig(fault=fault.value, rank=rank, after=after), Faulty)
