"""Ranks as threads of this process: the one place that uses torch's private parts for it.

One thread runs at a time. A rank runs until it waits in a collective; then the next rank runs, in order. This has three
effects. A run is the same every time. What Transformers changes for the whole process while it loads a model (default dtype,
initialisers) is seen by one rank only. A deadlock is noticed as soon as no rank can run any more.

Private API, torch 2.13.0: `torch.testing._internal.distributed.multi_threaded_pg` (a world per thread, and the arithmetic of
each collective), `torch._C._distributed_c10d._set_thread_isolation_mode` (group names per thread).
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
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

_BACKEND = "threads"
_TIMEOUT = timedelta(seconds=60)
Result = TypeVar("Result")


class _Collective(Protocol):
    """The arithmetic of a collective, done once the arguments of every rank have arrived."""

    def work(self, data: Sequence[object]) -> None: ...


class GoneError(dist.DistNetworkError):
    """A collective that cannot complete, because another rank of its group has ended."""


@dataclass(slots=True)
class _Event:
    """Something that ranks wait for: a collective, or a message."""

    error: BaseException | None = None
    over: bool = False


@dataclass(slots=True)
class _PendingCollective(_Event):
    """One collective of one group that waits for ranks; `arguments_of` holds the arguments that arrived, by rank in the group."""

    collective: _Collective = field(kw_only=True)
    arguments_of: dict[int, object] = field(default_factory=dict)


@dataclass(slots=True)
class _Message(_Event):
    """One message between two ranks; `over` once it was sent."""

    tensors: list[torch.Tensor] = field(default_factory=list)


@dataclass(slots=True)
class _ThreadScheduler:
    """Decides which rank runs (`turn`), and holds the collectives and messages that ranks wait for."""

    size: int
    turn: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)
    waiting: dict[int, _Event] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    pending: dict[str, _PendingCollective] = field(default_factory=dict)
    messages: dict[tuple[str, tuple[int, int], int], _Message] = field(default_factory=dict)
    counted: dict[tuple[str, tuple[int, int], bool], int] = field(default_factory=dict)
    stopped: bool = False

    def begin(self, rank: int) -> None:
        """Wait until this rank may run."""
        with self.changed:
            self.changed.wait_for(lambda: self.turn == rank)

    def end(self, rank: int) -> None:
        """This rank has ended, and joins no further collective."""
        with self.changed:
            self.ended.add(rank)
            self._pass_on(rank)

    def call(self, group: "_Group", collective: _Collective, arguments: object) -> None:
        """Join a collective of the group with this rank's arguments, and return once its results are written.

        Raises:
            GoneError: a rank that is waited for has ended, or waits for another collective.
            RuntimeError: the ranks called different collectives, or their arguments do not fit together.
        """
        if self.stopped:
            raise GoneError("the run was stopped")
        collective_call = self.pending.setdefault(group.name, _PendingCollective(collective=collective))
        collective_call.arguments_of[group.at] = arguments
        if type(collective_call.collective) is not type(collective):
            names = f"{type(collective_call.collective).__name__} and {type(collective).__name__}"
            collective_call.error = RuntimeError(f"the ranks called different collectives: {names}")
        if len(collective_call.arguments_of) == group.members:
            self._run_collective(group.name, collective_call)
        else:
            self.wait_for(group.world_rank, collective_call)
        if collective_call.error is not None:
            raise collective_call.error

    def message(self, group: str, ends: tuple[int, int], *, sent: bool) -> _Message:
        """The next message that one rank of a group sends to another, or (not `sent`) the next that it receives; `ends` are
        both ranks.
        """
        count = self.counted[group, ends, sent] = self.counted.get((group, ends, sent), 0) + 1
        return self.messages.setdefault((group, ends, count), _Message())

    def wait_for(self, rank: int, event: _Event) -> None:
        """Let the other ranks run until the event is over.

        Raises:
            GoneError: no other rank can complete it any more.
        """
        if self.stopped:
            raise GoneError("the run was stopped")
        if not event.over:
            self._wait(rank, event)
        if event.error is not None:
            raise event.error

    def _run_collective(self, name: str, collective_call: _PendingCollective) -> None:
        del self.pending[name]
        try:
            if collective_call.error is None:
                given = collective_call.arguments_of
                collective_call.collective.work([given[rank] for rank in sorted(given)])
        except Exception as error:  # raised on every rank of the group
            collective_call.error = error
        collective_call.over = True

    def _wait(self, rank: int, event: _Event) -> None:
        with self.changed:
            self.waiting[rank] = event
            self._pass_on(rank)
            self.changed.wait_for(lambda: self.turn == rank)
            del self.waiting[rank]

    def _pass_on(self, rank: int) -> None:
        """Give the turn to the next rank that can run; in a deadlock, fail what every rank waits for."""
        order = [(rank + step) % self.size for step in range(1, self.size + 1)]
        left = [other for other in order if other not in self.ended]
        able = [other for other in left if other not in self.waiting or self.waiting[other].over]
        if left and not able:
            for event in self.waiting.values():
                event.over = True
                event.error = event.error or GoneError("a rank that this collective waits for has ended")
            self.pending.clear()
        self.turn = next(iter(able or left), -1)
        self.changed.notify_all()


@dataclass(frozen=True, slots=True)
class _Job:
    """What every rank is to do, and the scheduler and store that the ranks share for it."""

    work: Callable[[int], object]
    scheduler: _ThreadScheduler
    store: HashStore


class _CurrentRank(threading.local):
    """The rank and the scheduler of the current thread."""

    rank: int
    scheduler: _ThreadScheduler


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

    def _call(self, collective: _Collective, arguments: object) -> Work:
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
    message: _Message
    tensors: _Tensors

    def wait(self) -> bool:
        _CURRENT.scheduler.wait_for(self.world_rank, self.message)
        for mine, theirs in zip(self.tensors, self.message.tensors, strict=True):
            mine.detach().copy_(theirs)
        return True


def _collective_of(kind: Callable[..., object], *options: object) -> _Collective:
    return cast(_Collective, kind(*options))


class _GroupOptions(Protocol):
    """The attributes that are read of the options that torch gives a backend for a new group."""

    group_id: str
    group_rank: int
    group_size: int


def _created(options: _GroupOptions, _: object) -> _Group:
    return _Group(options.group_id, options.group_rank, options.group_size)


class Threads(AbstractContextManager["Threads"]):
    """Ranks as threads that live while this context is entered, so that torch's caches are kept from run to run.

    Not to be entered twice at a time, and not where this process is a rank itself.
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
        scheduler, store, end = _ThreadScheduler(self.degree), HashStore(), monotonic() + timeout
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


@contextmanager
def _threaded() -> Iterator[None]:
    """Each thread has a world of its own; Transformers copies weights in the rank's own thread, which knows its rank."""
    if _BACKEND.upper() not in Backend._plugins:
        Backend.register_backend(_BACKEND, _created, extended_api=True, devices=["cpu"])
    before = os.environ.get("HF_DEACTIVATE_ASYNC_LOAD")
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
    isolate: Callable[[bool], None] = getattr(c10d, "_set_thread_isolation_mode")  # noqa: B009  # not in torch's stubs
    isolate(True)
    private._install_threaded_pg()
    try:
        yield
    finally:
        private._uninstall_threaded_pg()
        isolate(False)
        if before is None:
            del os.environ["HF_DEACTIVATE_ASYNC_LOAD"]
        else:
            os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = before
