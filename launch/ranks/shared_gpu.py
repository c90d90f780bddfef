"""A backend for ranks that share a GPU: gloo, on copies of the tensors on the CPU.

NCCL refuses two ranks on one GPU. Gloo takes GPU tensors, but not everywhere: send and receive read GPU memory as if it were
host memory, and waiting for an asynchronous gather ends the process (seen with torch 2.11). Copies are slower and always right,
which is enough for a check.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Protocol, TypeAlias

import torch
from torch.distributed import Backend, ProcessGroup, ProcessGroupGloo, Work
from torch.distributed.distributed_c10d import GroupName, Store
from torch.utils._pytree import tree_map_only

STAGED = "staged"
"""The backend's name, once `register` was called."""
_COLLECTIVES = (
    *("allreduce", "allreduce_coalesced", "broadcast", "reduce", "gather", "scatter", "send", "recv", "recv_anysource"),
    *("allgather", "allgather_coalesced", "reduce_scatter", "alltoall"),
    *("_allgather_base", "_reduce_scatter_base", "alltoall_base"),
    *("allgather_into_tensor_coalesced", "reduce_scatter_tensor_coalesced"),
    *("all_gather_single", "all_gather_single_coalesced", "all_to_all_single"),
    *("reduce_scatter_single", "reduce_scatter_single_coalesced"),
)
"""The methods of a process group that take tensors, by their names in several versions of torch; missing ones are skipped."""
_Pair: TypeAlias = tuple[torch.Tensor, torch.Tensor]


class _GroupOptions(Protocol):
    """The part of torch's options for a new process group that is needed here."""

    store: Store
    group_id: str
    group_rank: int
    group_size: int
    timeout: timedelta


class _Copied(Work):
    """A collective on copies; `wait` copies the results back."""

    def __init__(self, work: Work, pairs: list[_Pair]) -> None:
        super().__init__()
        self.work, self.pairs = work, pairs

    def wait(self, timeout: timedelta | None = None) -> bool:
        self.work.wait(timeout) if timeout else self.work.wait()
        for tensor, copy in self.pairs:
            tensor.data.copy_(copy)  # not a change that autograd should count: an input comes back as it was
        self.pairs = []
        return True


class _Staged(ProcessGroup):
    """A process group that runs its collectives in a gloo group, on copies of the tensors on the CPU."""

    def __init__(self, options: _GroupOptions, gloo: ProcessGroup) -> None:
        super().__init__(options.group_rank, options.group_size)  # type: ignore[call-arg]  # torch's stub leaves it out
        self.named, self.gloo = GroupName(options.group_id), gloo

    @property
    def group_name(self) -> GroupName:
        return self.named

    def getBackendName(self) -> str:  # noqa: N802  # torch's own name
        return STAGED

    def barrier(self, opts: object = None) -> Work:
        del opts  # it names the GPUs
        return self.gloo.barrier()


def _collective(name: str) -> Callable[..., Work]:
    def on_copies(group: _Staged, *arguments: object) -> Work:
        pairs: list[_Pair] = []

        def copied(tensor: torch.Tensor) -> torch.Tensor:
            copy = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
            pairs.append((tensor, copy))
            return copy

        return _Copied(getattr(group.gloo, name)(*tree_map_only(torch.Tensor, copied, arguments)), pairs)

    return on_copies


for _name in _COLLECTIVES:
    if hasattr(ProcessGroup, _name):
        setattr(_Staged, _name, _collective(_name))


def _created(options: _GroupOptions, _: object) -> _Staged:
    place = (options.store, options.group_rank, options.group_size)
    group = ProcessGroup(*place)
    gloo = ProcessGroupGloo(*place, options.timeout)
    group._register_backend(torch.device("cpu"), ProcessGroup.BackendType.GLOO, gloo)
    return _Staged(options, group)


def register() -> str:
    """Register the backend with torch, once; returns its name."""
    if STAGED not in Backend.backend_list:
        Backend.register_backend(STAGED, _created, extended_api=True, devices=["cpu", "cuda"])
    return STAGED
