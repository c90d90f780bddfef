"""Ranks as threads of this process: the one place that uses torch's private parts for it.

One thread runs at a time. A rank runs until it waits in a collective; then the next rank runs, in order. This has three
effects. A run is the same every time. What Transformers changes for the whole process while it loads a model (default dtype,
initialisers) is seen by one rank only. A deadlock is noticed as soon as no rank can run any more.

Private API, torch 2.13.0: `torch.testing._internal.distributed.multi_threaded_pg` (a world per thread, and the arithmetic of
each collective), `torch._C._distributed_c10d._set_thread_isolation_mode` (group names per thread).
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from queue import Empty, SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar, cast

import torch
import torch.distributed as dist
from torch._C import _distributed_c10d as c10d
from torch._C._distributed_c10d import (
    AllreduceOptions,
    BroadcastOptions,
    HashStore,
    ReduceScatterOptions,
    Work,
)
from torch.distributed.distributed_c10d import Backend
from torch.testing._internal.distributed import multi_threaded_pg as private

from shardproof.verify.run.collectives.thread_scheduler import ThreadCollective, ThreadMessage, ThreadScheduler

_BACKEND = "threads"
_TIMEOUT = timedelta(seconds=60)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class _Job:
    """What every rank is to do, and the scheduler and store that the ranks share for it."""

    work: Callable[[int], object]
    scheduler: ThreadScheduler
    store: HashStore


class _CurrentRank(threading.local):
    """The rank and the scheduler of the current thread."""

    rank: int
    scheduler: ThreadScheduler


_CURRENT = _CurrentRank()


if TYPE_CHECKING:
    _Base = object  # torch types its overloads, of which it calls one each
else:
    _Base = dist.ProcessGroup
_Tensors: TypeAlias = list[torch.Tensor]


class _Group(_Base):
    """A process group whose collectives copy between the tensors of threads."""

    def __init__(self, name: str, at: int, members: int) -> None:
        super().__init__(at, members)  # type: ignore[call-arg]  # see above
        self.name, self.at, self.members, self.world_rank = name, at, members, _CURRENT.rank

    def _call(self, collective: ThreadCollective, arguments: object) -> Work:
        _CURRENT.scheduler.call(self, collective, arguments)
        work: Work = private.ret_work(arguments)
        return work

    def size(self) -> int:
        return self.members

    def getBackendName(self) -> str:  # noqa: N802  # torch's own name
        return _BACKEND

    @property
    def group_name(self) -> str:
        return self.name

    def send(self, tensors: _Tensors, to: int, tag: int = 0) -> "_Sent":
        """Sending does not wait for the receiver."""
        del tag
        message = _CURRENT.scheduler.message(self.name, (self.at, to), sent=True)
        message.tensors, message.over = [tensor.detach().clone() for tensor in tensors], True
        return _Sent()

    def recv(self, tensors: _Tensors, source: int, tag: int = 0) -> "_Received":
        del tag
        return _Received(self.world_rank, _CURRENT.scheduler.message(self.name, (source, self.at), sent=False), tensors)

    def allreduce(self, tensors: _Tensors, opts: AllreduceOptions) -> Work:
        return self._call(_collective_of(private.AllReduce, opts.reduceOp), tensors)

    allreduce_coalesced = allreduce

    def barrier(self, opts: object = None) -> Work:
        del opts  # torch gives it by name
        return self._call(_collective_of(private.AllReduce, AllreduceOptions().reduceOp), [torch.ones(1)])

    def allgather(self, outputs: list[_Tensors], inputs: _Tensors, *_: object) -> Work:
        return self._call(_collective_of(private.AllGather), (outputs, inputs))

    def all_gather_single(self, output: torch.Tensor, given: torch.Tensor, *_: object) -> Work:
        return self.allgather([list(output.chunk(self.members))], [given])

    def all_gather_single_coalesced(self, outputs: _Tensors, inputs: _Tensors, *_: object) -> Work:
        return [self.all_gather_single(*pair) for pair in zip(outputs, inputs, strict=True)][-1]

    def broadcast(self, tensors: _Tensors, opts: BroadcastOptions) -> Work:
        return self._call(_collective_of(private.Broadcast, opts.rootRank), tensors)

    def reduce_scatter(self, outputs: _Tensors, inputs: list[_Tensors], opts: ReduceScatterOptions) -> Work:
        return self._call(_collective_of(private.ReduceScatter, opts.reduceOp), (outputs, inputs))

    def reduce_scatter_single(self, output: torch.Tensor, given: torch.Tensor, opts: ReduceScatterOptions) -> Work:
        return self.reduce_scatter([output], [list(given.chunk(self.members))], opts)

    def reduce_scatter_single_coalesced(self, outputs: _Tensors, inputs: _Tensors, opts: ReduceScatterOptions) -> Work:
        return [self.reduce_scatter_single(*pair, opts) for pair in zip(outputs, inputs, strict=True)][-1]

    def alltoall(self, outputs: _Tensors, inputs: _Tensors, *_: object) -> Work:
        return self._call(_collective_of(private.AllToAll), (outputs, inputs))

    def all_to_all_single(
        self, output: torch.Tensor, given: torch.Tensor, output_sizes: list[int], sizes: list[int], *_: object
    ) -> Work:
        return self._call(_collective_of(private.AllToAllBase), (output, given, output_sizes, sizes))


class _Sent:
    """The handle of a message that was sent."""

    def wait(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class _Received:
    """The handle of a message that is to be received, and the tensors that it is copied into."""

    world_rank: int
    message: ThreadMessage
    tensors: _Tensors

    def wait(self) -> bool:
        _CURRENT.scheduler.wait_for(self.world_rank, self.message)
        for mine, theirs in zip(self.tensors, self.message.tensors, strict=True):
            mine.detach().copy_(theirs)
        return True


def _collective_of(kind: Callable[..., object], *options: object) -> ThreadCollective:
    return cast(ThreadCollective, kind(*options))


class _ThreadGroupOptions(Protocol):
    """The attributes that are read of the options that torch gives a backend for a new group."""

    group_id: str
    group_rank: int
    group_size: int


def _created(options: _ThreadGroupOptions, _: object) -> _Group:
    return _Group(options.group_id, options.group_rank, options.group_size)


class Threads(AbstractContextManager["Threads"]):
    """Ranks as threads that live while this context is entered, so that torch's caches are kept from run to run.

    Several may be entered, and one of them run at a time; not where this process is a rank itself.
    """

    def __init__(self, degree: int) -> None:
        self.degree = degree
        self._work: list[SimpleQueue[_Job | None]] = [SimpleQueue() for _ in range(degree)]
        self._done: SimpleQueue[tuple[int, object, BaseException | None]] = SimpleQueue()
        self._around = ExitStack()
        self._ranks: list[threading.Thread] = []
        self._stuck = False

    def __enter__(self) -> "Threads":
        self._around.enter_context(_threaded())
        for rank in range(self.degree):
            self._ranks.append(threading.Thread(target=self._serve, args=(rank,), name=f"rank {rank}", daemon=True))
            self._ranks[-1].start()
        return self

    def __exit__(self, *_: object) -> None:
        for queue in self._work:
            queue.put(None)
        for rank in () if self._stuck else self._ranks:
            rank.join()  # what torch keeps for a thread cannot be taken down beside the interpreter's own end
        self._ranks.clear()
        self._around.close()

    def run(self, work: Callable[[int], Result], *, timeout: float = 300.0) -> list[Result]:
        """`work(rank)` on every rank, in a fresh process group of all of them; the results in the order of the ranks.

        What `work` raises is raised here, once every rank has ended.

        Raises:
            TimeoutError: not every rank ended within `timeout` seconds. The ranks end at their next collective; one that
                never comes to any goes on as a thread, and these ranks answer no more.
        """
        scheduler, store, end = ThreadScheduler(self.degree), HashStore(), monotonic() + timeout
        for queue in self._work:
            queue.put(_Job(work, scheduler, store))
        results: dict[int, Result] = {}
        raised: list[BaseException] = []
        try:
            for _ in range(self.degree):
                rank, result, error = self._done.get(timeout=max(end - monotonic(), 0.0))
                results[rank] = cast(Result, result)
                raised += [] if error is None else [error]
        except Empty:
            raise TimeoutError(f"not every rank ended within {timeout:g} s") from None
        finally:
            scheduler.stopped = self._stuck = len(results) < self.degree
        if raised:
            raise raised[0]
        return [results[rank] for rank in range(self.degree)]

    def _serve(self, rank: int) -> None:
        while (given := self._work[rank].get()) is not None:
            self._done.put((rank, *_run_job(rank, self.degree, given)))


def _run_job(rank: int, degree: int, given: _Job) -> tuple[object, BaseException | None]:
    _CURRENT.rank, _CURRENT.scheduler = rank, given.scheduler
    given.scheduler.begin(rank)
    try:
        dist.init_process_group(_BACKEND, store=given.store, rank=rank, world_size=degree, timeout=_TIMEOUT)
        try:
            return given.work(rank), None
        finally:
            dist.destroy_process_group()
    except BaseException as error:
        return None, error
    finally:
        given.scheduler.end(rank)


@dataclass(slots=True)
class _Installation:
    """Torch's threaded process groups: the first `Threads` that is entered installs them, the last that is left removes them."""

    users: int = 0
    async_load: str | None = None
    """`HF_DEACTIVATE_ASYNC_LOAD` as it was before."""

    def enter(self) -> None:
        self.users += 1
        if self.users > 1:
            return
        if _BACKEND.upper() not in Backend._plugins:
            Backend.register_backend(_BACKEND, _created, extended_api=True, devices=["cpu"])
        self.async_load = os.environ.get("HF_DEACTIVATE_ASYNC_LOAD")
        os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
        _isolate_threads(True)
        private._install_threaded_pg()

    def leave(self) -> None:
        self.users -= 1
        if self.users:
            return
        private._uninstall_threaded_pg()
        _isolate_threads(False)
        if self.async_load is None:
            del os.environ["HF_DEACTIVATE_ASYNC_LOAD"]
        else:
            os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = self.async_load


_INSTALLATION = _Installation()


def _isolate_threads(isolated: bool) -> None:
    isolate: Callable[[bool], None] = getattr(c10d, "_set_thread_isolation_mode")  # noqa: B009  # not in torch's stubs
    isolate(isolated)


@contextmanager
def _threaded() -> Iterator[None]:
    """Each thread has a world of its own; Transformers copies weights in the rank's own thread, which knows its rank."""
    _INSTALLATION.enter()
    try:
        yield
    finally:
        _INSTALLATION.leave()
