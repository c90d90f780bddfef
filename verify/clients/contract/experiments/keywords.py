"""BE401: do the keywords that a client gives its base model arrive at the attention?

An object of its own is given for each keyword, the model is run once, and each call of the attention is asked which of them
arrived. Where one is missing, the frames that are still running say which of them hold it: the first that was given it and did
not hand it on is at fault. Source of the keywords: `verify.clients.contract.facts`, and the dialects.
"""

import ast
import re
import sys
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import CodeType, FrameType, MemberDescriptorType, MethodType
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig

from shardproof.planner.ir.findings import Source
from shardproof.planner.loading.source_lines import relative
from shardproof.verify.clients.contract.experiments.client_attention import AttentionCall, AttentionRecorder
from shardproof.verify.clients.contract.experiments.frames import frames, is_modeling
from shardproof.verify.clients.contract.source import code_tree

DEPTH = 4
"""How deep a keyword is looked for inside the values of a frame."""
_UNEXPECTED = re.compile(r"([\w.<>]+)\(\) got an unexpected keyword argument '(\w+)'")


_NO_HOLDERS = (Tensor, str, bytes, int, float, type, type(sys), PreTrainedConfig, CodeType, AttentionRecorder)


class Sentinel:
    """The value of one keyword."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Where a keyword is lost: the function, the line, and what it does there."""

    keyword: str
    path: str
    function: str
    source: Source | None
    problem: str


@dataclass
class KeywordWatch:
    """Listens to the calls of the attention, and remembers the first loss of each keyword and function."""

    wanted: Mapping[str, Sentinel]
    losses: dict[tuple[str, str], Loss] = field(default_factory=dict)
    suspects: dict[CodeType, str] = field(default_factory=dict)
    """Functions that were given a keyword and have lost it, with the keyword: their lines are traced in another run."""

    def __call__(self, call: AttentionCall) -> None:
        for name, sentinel in self.wanted.items():
            if call.options.get(name) is not sentinel and sentinel not in call.extra:
                self._lost(name, sentinel, call)

    def _lost(self, name: str, sentinel: Sentinel, call: AttentionCall) -> None:
        stack = _model_frames()
        holding = [at for at, frame in enumerate(stack) if _holds(frame.f_locals, sentinel)]
        last = max(holding, default=-1)
        if last < 0:  # called where no frame of the model is below, as in a thread
            owner = type(call.module).__name__
            self.losses.setdefault((name, owner), Loss(name, call.path, owner, call.source, "not found"))
            return
        if (hook := _hook_of(stack[last])) is not None:
            self.suspects.setdefault(hook, name)
            source = Source(relative(hook.co_filename), hook.co_firstlineno)
            self.losses.setdefault((name, hook.co_qualname), Loss(name, call.path, hook.co_qualname, source, "hook"))
            return
        at = _responsible(stack, last)
        if at is None:
            return
        code = stack[at].f_code
        self.suspects.setdefault(code, name)
        source = Source(relative(code.co_filename), stack[at].f_lineno)
        self.losses.setdefault((name, code.co_qualname), Loss(name, call.path, code.co_qualname, source, "call"))


def _model_frames() -> list[FrameType]:
    """The frames of the running model, the outermost first: those between the call of the base model and the attention."""
    every = list(frames())
    own = [at for at, frame in enumerate(every) if _is_own(frame)]
    inside = next((at for at in own if every[at].f_code.co_name in CALLERS), len(every))
    return [frame for frame in every[:inside] if not _is_own(frame)][::-1]


CALLERS = ("run_as_engine", "run_once")
"""The functions that call the model."""


def _responsible(stack: list[FrameType], last: int) -> int | None:
    """The frame at fault: `last` is the innermost one that holds the keyword. A library passes on what it is given, so that
    from there the next frame of the model has lost it; a closure made in the frame at fault is a part of it.
    """
    if not is_modeling(stack[last].f_code.co_filename):
        below = range(last + 1, len(stack))
        return next((at for at in below if is_modeling(stack[at].f_code.co_filename)), None)
    at = last
    while at + 1 < len(stack) and stack[at + 1].f_code in _inner(stack[at].f_code):
        at += 1
    return at


def _hook_of(frame: FrameType) -> CodeType | None:
    """The hook of the model's own that a module runs before its forward, where `frame` is torch's call of that module."""
    module = frame.f_locals.get("self")
    if is_modeling(frame.f_code.co_filename) or not isinstance(module, nn.Module):
        return None
    codes = [getattr(hook, "__code__", None) for hook in module._forward_pre_hooks.values()]
    return next((code for code in codes if code is not None and is_modeling(code.co_filename)), None)


def _inner(code: CodeType) -> list[CodeType]:
    return [one for one in code.co_consts if isinstance(one, CodeType)]


def _is_own(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).startswith("shardproof.")


def _holds(names: Mapping[str, Any], sentinel: Sentinel) -> bool:
    return any(reaches(value, sentinel) for value in list(names.values()))


def reaches(value: object, sentinel: Sentinel, depth: int = DEPTH) -> bool:
    """Whether an object is reached from a value through containers, attributes, partial calls and bound methods."""
    if value is sentinel:
        return True
    if depth == 0 or isinstance(value, _NO_HOLDERS):
        return False
    return any(reaches(part, sentinel, depth - 1) for part in _parts(value))


def _parts(value: object) -> list[object]:
    if isinstance(value, ChainMap):
        return list(value.maps)
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)[:64]
    if isinstance(value, partial):
        return [value.args, value.keywords, value.func]
    if isinstance(value, MethodType):
        return [value.__self__]
    if isinstance(value, nn.Module):
        common = set(vars(nn.Module())) | {"config"}
        return [part for name, part in vars(value).items() if name not in common]
    closed = [cell.cell_contents for cell in getattr(value, "__closure__", None) or () if _filled(cell)]
    slots = [slot for slot in vars(type(value)).values() if isinstance(slot, MemberDescriptorType)]
    held = [slot.__get__(value) for slot in slots if _set(slot, value)]
    own = getattr(value, "__dict__", {})
    return [*(own.values() if isinstance(own, dict) else ()), *held, *closed]


def _set(slot: MemberDescriptorType, value: object) -> bool:
    try:
        slot.__get__(value)
    except AttributeError:
        return False
    return True


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018  # an empty cell raises
    except ValueError:
        return False
    return True


@dataclass
class _LineWatch:
    """Watches, line by line, which names of one function hold a keyword."""

    code: CodeType
    sentinel: Sentinel
    held: set[str] = field(default_factory=set)
    ever: set[str] = field(default_factory=set)
    tensors: set[str] = field(default_factory=set)
    """Names of tensors: no keyword is handed on in one."""
    lines: list[int] = field(default_factory=list)
    dropped: int = 0
    """The line after which a name that held the keyword no longer does."""

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "call":
            return self.trace if frame.f_code is self.code else None
        if event in ("line", "return"):
            now = {name for name, value in list(frame.f_locals.items()) if reaches(value, self.sentinel)}
            if self.held - now and self.lines and event == "line":
                self.dropped = self.lines[-1]
            self.held, self.ever = now, self.ever | now
            self.tensors |= {name for name, value in list(frame.f_locals.items()) if isinstance(value, Tensor)}
            if event == "line":
                self.lines.append(frame.f_lineno)
        return self.trace


def located(watch: KeywordWatch, again: Callable[[], object]) -> list[Loss]:
    """The losses with the line of each: `again` runs the same model once more, with the same keywords.

    A function that rebinds, empties or filters the keywords is at fault on that line; else the call that leaves them out is.
    """
    found = []
    for (name, function), loss in watch.losses.items():
        code = next((code for code in watch.suspects if code.co_qualname == function), None)
        if code is None or loss.source is None:
            found.append(loss)
            continue
        lines = _LineWatch(code, watch.wanted[name])
        before = sys.gettrace()
        sys.settrace(lines.trace)
        try:
            again()
        finally:
            sys.settrace(before)
        found.append(_explained(loss, code, lines))
    return found


def _explained(loss: Loss, code: CodeType, lines: _LineWatch) -> Loss:
    assert loss.source is not None
    file, at = loss.source.file, loss.source.line
    if loss.problem == "hook":
        last = lines.lines[-1] if lines.lines else at
        return Loss(loss.keyword, loss.path, loss.function, Source(file, last), "hook")
    if lines.dropped:
        return Loss(loss.keyword, loss.path, loss.function, Source(file, lines.dropped), "replaced or emptied")
    reading = _reads(code, lines, until=at)
    if reading:
        return Loss(loss.keyword, loss.path, loss.function, Source(file, reading), "filtered")
    if not lines.ever:
        return Loss(loss.keyword, loss.path, loss.function, loss.source, "not taken")
    return loss


def _reads(code: CodeType, lines: _LineWatch, *, until: int) -> int:
    """The last executed statement before the call that reads a name which holds the keyword, and whose result the call is
    given: what it makes lacks the keyword; 0 where there is none.
    """
    tree = code_tree(code)
    if tree is None:
        return 0
    executed = set(lines.lines)
    call = next((node for node in ast.walk(tree) if _covers(node, until) and isinstance(node, ast.Call)), None)
    given = {part.id for part in ast.walk(call) if isinstance(part, ast.Name)} if call is not None else set()
    found = 0
    for node in ast.walk(tree):
        if (
            not isinstance(node, ast.stmt)
            or isinstance(node, ast.FunctionDef | ast.With)
            or node.lineno not in executed
        ):
            continue
        if node.lineno >= until or isinstance(node, ast.If | ast.Return):
            continue
        read = {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load)}
        if read & lines.ever and _changed(node) & given - lines.ever - lines.tensors:
            found = max(found, node.lineno)
    return found


def _changed(statement: ast.stmt) -> set[str]:
    """Names that a statement binds, or whose object it may change: by a method, or by an item."""
    held = [part.value for part in ast.walk(statement) if isinstance(part, ast.Attribute | ast.Subscript)]
    bound = [part for part in ast.walk(statement) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)]
    return {part.id for part in (*held, *bound) if isinstance(part, ast.Name) and part.id != "self"}


def _covers(node: ast.AST, line: int) -> bool:
    first, last = getattr(node, "lineno", 0), getattr(node, "end_lineno", 0) or 0
    return first <= line <= last


def refused(error: TypeError, model: nn.Module, names: Sequence[str]) -> Loss | None:
    """A function that takes no such keyword, from the error of its call; None where the error is another one."""
    match = _UNEXPECTED.search(str(error))
    if match is None:
        return None
    function, keyword = match[1], match[2] if match[2] in names else names[0]
    return Loss(keyword, "", function, _definition(error, model, function), "signature")


def _definition(error: TypeError, model: nn.Module, function: str) -> Source | None:
    """The line where a function is defined that a model's class has, or that the file of a running frame has."""
    owner, _, name = function.rpartition(".")
    for kind in dict.fromkeys(base for module in model.modules() for base in type(module).__mro__):
        made = vars(kind).get(name)
        code = getattr(made, "__code__", None)
        if kind.__qualname__ == owner and code is not None:
            return Source(relative(code.co_filename), code.co_firstlineno)
    trace = error.__traceback__
    found: Source | None = None
    while trace is not None:
        if is_modeling(trace.tb_frame.f_code.co_filename):
            found = Source(relative(trace.tb_frame.f_code.co_filename), trace.tb_lineno)
        trace = trace.tb_next
    return found
