"""Decide which rank runs, where ranks are threads of one process that run one at a time."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.distributed as dist


class ThreadCollective(Protocol):
    """The arithmetic of a collective, done once the arguments of every rank have arrived."""

    def work(self, data: Sequence[object]) -> None: ...


class GoneError(dist.DistNetworkError):
    """A collective that cannot complete, because another rank of its group has ended."""


@dataclass(slots=True)
class ThreadEvent:
    """Something that ranks wait for: a collective, or a message."""

    error: BaseException | None = None
    over: bool = False


class ThreadGroup(Protocol):
    """A process group as the scheduler knows it: its name, this rank in it and in the world, the number of its ranks."""

    name: str
    at: int
    members: int
    world_rank: int


@dataclass(slots=True)
class PendingCollective(ThreadEvent):
    """One collective of one group that waits for ranks; `arguments_of` holds the arguments that arrived, by rank in the group."""

    collective: ThreadCollective = field(kw_only=True)
    arguments_of: dict[int, object] = field(default_factory=dict)


@dataclass(slots=True)
class ThreadMessage(ThreadEvent):
    """One message between two ranks; `over` once it was sent."""

    tensors: list[torch.Tensor] = field(default_factory=list)


@dataclass(slots=True)
class ThreadScheduler:
    """Decides which rank runs (`turn`), and holds the collectives and messages that ranks wait for."""

    size: int
    turn: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)
    waiting: dict[int, ThreadEvent] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    pending: dict[str, PendingCollective] = field(default_factory=dict)
    messages: dict[tuple[str, tuple[int, int], int], ThreadMessage] = field(default_factory=dict)
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

    def call(self, group: ThreadGroup, collective: ThreadCollective, arguments: object) -> None:
        """Join a collective of the group with this rank's arguments, and return once its results are written.

        Raises:
            GoneError: a rank that is waited for has ended, or waits for another collective.
            RuntimeError: the ranks called different collectives, or their arguments do not fit together.
        """
        if self.stopped:
            raise GoneError("the run was stopped")
        collective_call = self.pending.setdefault(group.name, PendingCollective(collective=collective))
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

    def message(self, group: str, ends: tuple[int, int], *, sent: bool) -> ThreadMessage:
        """The next message that one rank of a group sends to another, or (not `sent`) the next that it receives; `ends` are
        both ranks.
        """
        count = self.counted[group, ends, sent] = self.counted.get((group, ends, sent), 0) + 1
        return self.messages.setdefault((group, ends, count), ThreadMessage())

    def wait_for(self, rank: int, event: ThreadEvent) -> None:
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

    def _run_collective(self, name: str, collective_call: PendingCollective) -> None:
        del self.pending[name]
        try:
            if collective_call.error is None:
                given = collective_call.arguments_of
                collective_call.collective.work([given[rank] for rank in sorted(given)])
        except Exception as error:  # raised on every rank of the group
            collective_call.error = error
        collective_call.over = True

    def _wait(self, rank: int, event: ThreadEvent) -> None:
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
