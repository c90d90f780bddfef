"""Ranks as threads of this process: the one place that uses torch's private parts for it.

One thread runs at a time. A rank runs until it waits in a collective; then the next rank runs, in order. So a run is the same
every time, what Transformers changes for the whole process while it loads (default dtype, initialisers) is seen by one rank
only, and a rank that waits for one that is gone is known to wait in vain as soon as nobody else can run.

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
    """What a collective does once every rank's arguments are there."""

    def work(self, data: Sequence[object]) -> None: ...


class GoneError(dist.DistNetworkError):
    """A collective that cannot end: another rank of the group has ended."""


@dataclass(slots=True)
class _Awaited:
    """What ranks wait for."""

    error: BaseException | None = None
    over: bool = False


@dataclass(slots=True)
class _Meeting(_Awaited):
    """One collective of one group: the arguments that came so far, by rank in the group."""

    collective: _Collective = field(kw_only=True)
    came: dict[int, object] = field(default_factory=dict)


@dataclass(slots=True)
class _Parcel(_Awaited):
    """One message between two ranks; it is over once it was sent."""

    tensors: list[torch.Tensor] = field(default_factory=list)


@dataclass(slots=True)
class _Table:
    """Whose turn it is, and which collectives wait for whom."""

    size: int
    turn: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)
    waiting: dict[int, _Awaited] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    meetings: dict[str, _Meeting] = field(default_factory=dict)
    parcels: dict[tuple[str, tuple[int, int], int], _Parcel] = field(default_factory=dict)
    counted: dict[tuple[str, tuple[int, int], bool], int] = field(default_factory=dict)
    stopped: bool = False

    def begin(self, rank: int) -> None:
        """Wait for the first turn."""
        with self.changed:
            self.changed.wait_for(lambda: self.turn == rank)

    def end(self, rank: int) -> None:
        """This rank will not come to any collective any more."""
        with self.changed:
            self.ended.add(rank)
            self._pass_on(rank)

    def meet(self, group: "_Group", collective: _Collective, arguments: object) -> None:
        """Bring this rank's arguments to a collective of its group, and return once its results are written.

        Raises:
            GoneError: a rank that is waited for has ended, or waits for another collective.
            RuntimeError: the ranks called different collectives, or their arguments do not fit together.
        """
        if self.stopped:
            raise GoneError("the run was stopped")
        meeting = self.meetings.setdefault(group.name, _Meeting(collective=collective))
        meeting.came[group.at] = arguments
        if type(meeting.collective) is not type(collective):
            names = f"{type(meeting.collective).__name__} and {type(collective).__name__}"
            meeting.error = RuntimeError(f"the ranks called different collectives: {names}")
        if len(meeting.came) == group.members:
            self._hold(group.name, meeting)
        else:
            self.wait_for(group.seat, meeting)
        if meeting.error is not None:
            raise meeting.error

    def parcel(self, group: str, ends: tuple[int, int], *, sent: bool) -> _Parcel:
        """The next message from one rank of a group to another that is sent, or the next that is received."""
        count = self.counted[group, ends, sent] = self.counted.get((group, ends, sent), 0) + 1
        return self.parcels.setdefault((group, ends, count), _Parcel())

    def wait_for(self, rank: int, awaited: _Awaited) -> None:
        """Let the other ranks go on until it is over.

        Raises:
            GoneError: no other rank can bring it about any more.
        """
        if self.stopped:
            raise GoneError("the run was stopped")
        if not awaited.over:
            self._wait(rank, awaited)
        if awaited.error is not None:
            raise awaited.error

    def _hold(self, name: str, meeting: _Meeting) -> None:
        del self.meetings[name]
        try:
            if meeting.error is None:
                meeting.collective.work([meeting.came[rank] for rank in sorted(meeting.came)])
        except Exception as error:  # every rank of the group hears of it
            meeting.error = error
        meeting.over = True

    def _wait(self, rank: int, awaited: _Awaited) -> None:
        with self.changed:
            self.waiting[rank] = awaited
            self._pass_on(rank)
            self.changed.wait_for(lambda: self.turn == rank)
            del self.waiting[rank]

    def _pass_on(self, rank: int) -> None:
        """The next rank that can run; where all wait in vain, they are told so, one after the other."""
        order = [(rank + step) % self.size for step in range(1, self.size + 1)]
        left = [other for other in order if other not in self.ended]
        able = [other for other in left if other not in self.waiting or self.waiting[other].over]
        if left and not able:
            for awaited in self.waiting.values():
                awaited.over = True
                awaited.error = awaited.error or GoneError("a rank that this collective waits for has ended")
            self.meetings.clear()
        self.turn = next(iter(able or left), -1)
        self.changed.notify_all()


@dataclass(frozen=True, slots=True)
class _Work:
    """What every rank is to do, and where the ranks meet for it."""

    work: Callable[[int], object]
    table: _Table
    store: HashStore


class _Seat(threading.local):
    """The rank and the table of the thread that asks."""

    rank: int
    table: _Table


_SEAT = _Seat()


if TYPE_CHECKING:
    _Base = object  # torch types its overloads, of which it calls one each
else:
    _Base = dist.ProcessGroup
_Tensors: TypeAlias = list[torch.Tensor]


class _Group(_Base):
    """A process group whose collectives copy between the tensors of threads."""

    def __init__(self, name: str, at: int, members: int) -> None:
        super().__init__(at, members)  # type: ignore[call-arg]  # see above
        self.name, self.at, self.members, self.seat = name, at, members, _SEAT.rank

    def _meet(self, collective: _Collective, arguments: object) -> Work:
        _SEAT.table.meet(self, collective, arguments)
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
        """Nobody waits for a message to be received."""
        del tag
        parcel = _SEAT.table.parcel(self.name, (self.at, to), sent=True)
        parcel.tensors, parcel.over = [tensor.detach().clone() for tensor in tensors], True
        return _Sent()

    def recv(self, tensors: _Tensors, source: int, tag: int = 0) -> "_Received":
        del tag
        return _Received(self.seat, _SEAT.table.parcel(self.name, (source, self.at), sent=False), tensors)

    def allreduce(self, tensors: _Tensors, opts: AllreduceOptions) -> Work:
        return self._meet(_made(private.AllReduce, opts.reduceOp), tensors)

    allreduce_coalesced = allreduce

    def barrier(self, opts: object = None) -> Work:
        del opts  # torch gives it by name
        return self._meet(_made(private.AllReduce, AllreduceOptions().reduceOp), [torch.ones(1)])

    def allgather(self, outputs: list[_Tensors], inputs: _Tensors, *_: object) -> Work:
        return self._meet(_made(private.AllGather), (outputs, inputs))

    def all_gather_single(self, output: torch.Tensor, given: torch.Tensor, *_: object) -> Work:
        return self.allgather([list(output.chunk(self.members))], [given])

    def all_gather_single_coalesced(self, outputs: _Tensors, inputs: _Tensors, *_: object) -> Work:
        return [self.all_gather_single(*pair) for pair in zip(outputs, inputs, strict=True)][-1]

    def broadcast(self, tensors: _Tensors, opts: BroadcastOptions) -> Work:
        return self._meet(_made(private.Broadcast, opts.rootRank), tensors)

    def reduce_scatter(self, outputs: _Tensors, inputs: list[_Tensors], opts: ReduceScatterOptions) -> Work:
        return self._meet(_made(private.ReduceScatter, opts.reduceOp), (outputs, inputs))

    def reduce_scatter_single(self, output: torch.Tensor, given: torch.Tensor, opts: ReduceScatterOptions) -> Work:
        return self.reduce_scatter([output], [list(given.chunk(self.members))], opts)

    def reduce_scatter_single_coalesced(self, outputs: _Tensors, inputs: _Tensors, opts: ReduceScatterOptions) -> Work:
        return [self.reduce_scatter_single(*pair, opts) for pair in zip(outputs, inputs, strict=True)][-1]

    def alltoall(self, outputs: _Tensors, inputs: _Tensors, *_: object) -> Work:
        return self._meet(_made(private.AllToAll), (outputs, inputs))

    def all_to_all_single(
        self, output: torch.Tensor, given: torch.Tensor, output_sizes: list[int], sizes: list[int], *_: object
    ) -> Work:
        return self._meet(_made(private.AllToAllBase), (output, given, output_sizes, sizes))


class _Sent:
    """A message that is on its way."""

    def wait(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class _Received:
    """A message that is waited for, and where it is to lie."""

    seat: int
    parcel: _Parcel
    tensors: _Tensors

    def wait(self) -> bool:
        _SEAT.table.wait_for(self.seat, self.parcel)
        for mine, theirs in zip(self.tensors, self.parcel.tensors, strict=True):
            mine.detach().copy_(theirs)
        return True


def _made(kind: Callable[..., object], *options: object) -> _Collective:
    return cast(_Collective, kind(*options))


class _Options(Protocol):
    """Of what torch tells a backend about a new group, what is needed here."""

    group_id: str
    group_rank: int
    group_size: int


def _created(options: _Options, _: object) -> _Group:
    return _Group(options.group_id, options.group_rank, options.group_size)


class Threads(AbstractContextManager["Threads"]):
    """Ranks that stay while this is entered, so that what torch learns about each operation is kept from run to run.

    Not to be entered twice at a time, and not where this process is a rank itself.
    """

    def __init__(self, degree: int) -> None:
        self.degree = degree
        self._work: list[SimpleQueue[_Work | None]] = [SimpleQueue() for _ in range(degree)]
        self._done: SimpleQueue[tuple[int, object, BaseException | None]] = SimpleQueue()
        self._around = ExitStack()
        self._ranks: list[threading.Thread] = []
        self._stuck = False

    def __enter__(self) -> "Threads":
        self._around.enter_context(_threaded())
        for rank in range(self.degree):
            self._ranks.append(threading.Thread(target=self._live, args=(rank,), name=f"rank {rank}", daemon=True))
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
        table, store, end = _Table(self.degree), HashStore(), monotonic() + timeout
        for queue in self._work:
            queue.put(_Work(work, table, store))
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
            table.stopped = self._stuck = len(results) < self.degree
        if raised:
            raise raised[0]
        return [results[rank] for rank in range(self.degree)]

    def _live(self, rank: int) -> None:
        while (given := self._work[rank].get()) is not None:
            self._done.put((rank, *_answer(rank, self.degree, given)))


def _answer(rank: int, degree: int, given: _Work) -> tuple[object, BaseException | None]:
    _SEAT.rank, _SEAT.table = rank, given.table
    given.table.begin(rank)
    try:
        dist.init_process_group(_BACKEND, store=given.store, rank=rank, world_size=degree, timeout=_TIMEOUT)
        try:
            return given.work(rank), None
        finally:
            dist.destroy_process_group()
    except BaseException as error:
        return None, error
    finally:
        given.table.end(rank)


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
