"""Every operation of a run with its result and the line of modeling code that asked for it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from shardproof.planner.ir.findings import Source
from shardproof.verify.clients.contract.experiments.frames import calling_line

Keep = Callable[[Tensor], bool]


@dataclass(frozen=True, slots=True)
class LoggedOp:
    """One operation: `value` is its result at that moment, or None where it was not wanted; `inputs` are the numbers of the
    operations that made what it was given.
    """

    name: str
    value: Tensor | None
    inputs: tuple[int, ...]
    source: Source | None


@dataclass
class OpLog(TorchDispatchMode):
    """Logs operations while it is entered. `keep` says which results are copied, for later in-place writes change them."""

    keep: Keep
    ops: list[LoggedOp] = field(default_factory=list)
    marked: set[int] = field(default_factory=set)
    _made: dict[int, int] = field(default_factory=dict)
    _alive: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = tuple(
            dict.fromkeys(
                self._made[id(one)]
                for one in tree_leaves((args, kwargs))
                if isinstance(one, Tensor) and id(one) in self._made
            )
        )
        result = func(*args, **kwargs)
        source = calling_line()
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                kept = value.detach().clone() if self.keep(value) else None
                self.ops.append(LoggedOp(str(func.overloadpacket), kept, given, source))
                self._made[id(value)] = len(self.ops) - 1
                self._alive.append(value)
                if func._schema.is_mutable:
                    self._wrote(value)
        return result

    def _wrote(self, value: Tensor) -> None:
        """Whatever shares the memory of a result that was written in place was made by that operation too."""
        memory = value.untyped_storage().data_ptr()
        for other in self._alive:
            if memory and other.untyped_storage().data_ptr() == memory:
                self._made[id(other)] = len(self.ops) - 1

    def mark(self, value: Tensor) -> None:
        """Remember the operation that made a tensor; its number is in `marked`."""
        if id(value) in self._made:
            self.marked.add(self._made[id(value)])

    def behind(self, value: Tensor) -> Iterator[LoggedOp]:
        """The operation that made a tensor, and those that made what it was given, the last first."""
        at = self._made.get(id(value))
        wanted, seen = [at] if at is not None else [], set[int]()
        while wanted:
            number = max(wanted)
            wanted.remove(number)
            if number not in seen:
                seen.add(number)
                yield self.ops[number]
                wanted += [one for one in self.ops[number].inputs if one not in wanted]


def logged_inside(module: nn.Module, run: Callable[[], object], keep: Keep) -> OpLog:
    """The log of what a module does in its first call in a run."""
    log, running = OpLog(keep), ExitStack()
    entered: list[bool] = []

    def enter(*_: Any) -> None:
        if not entered:
            running.enter_context(log)
        entered.append(True)

    def leave(*_: Any) -> None:
        running.close()

    handles = [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        with running:
            run()
    finally:
        for handle in handles:
            handle.remove()
    return log
