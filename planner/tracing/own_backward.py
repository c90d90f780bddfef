"""Backward passes that the forward does not show: custom autograd Functions and hooks on tensors.

Their backward is run at once, on a gradient that lies as the value itself does, and recorded like everything else. The op
`own_backward` then stands for the value: it says which input gets which gradient, and the relation of two programs checks that
(`planner.propagation.forward.propagate`, `planner.propagation.backward`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.checkpoint import CheckpointFunction

from shardproof.planner.ir.graph import GRADIENT_OF, OWN_BACKWARD
from shardproof.planner.tracing.recorder import Recorder


class Context:
    """What an autograd Function keeps between its forward and its backward, as `torch.autograd.function.FunctionCtx` does."""

    def __init__(self, needed: tuple[bool, ...]) -> None:
        self.needs_input_grad = needed
        self.saved_tensors: tuple[Any, ...] = ()

    def save_for_backward(self, *tensors: Any) -> None:
        """Keep tensors for the backward."""
        self.saved_tensors = tensors

    def _nothing(self, *_: object) -> None:
        """What only steers torch's engine."""

    save_for_forward = mark_dirty = mark_non_differentiable = set_materialize_grads = _nothing


class Handle:
    """What registering a hook returns."""

    def remove(self) -> None:
        """The hook stays: it was recorded when it was registered."""


def changes_what_is_saved(recorder: Recorder) -> bool:
    """Whether `saved_tensors_hooks` around this op give the backward another value than the forward had: rounded, or dropped.

    Torch's own hooks (checkpointing, `save_on_cpu`) give the same one. Others are tried on a small tensor.
    """
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False) if recorder.gradients.enabled else None
    if hooks is None or all(str(getattr(hook, "__module__", "")).startswith("torch.") for hook in hooks):
        return False
    pack, unpack = hooks
    with recorder.silent():
        try:
            return not torch.equal(unpack(pack(_SAVED)), _SAVED)
        except Exception:  # whatever somebody's hook raises on a tensor that is not its model's
            return True


_SAVED = torch.linspace(-3.3, 7.7, 64, dtype=torch.float32).reshape(4, 16)
"""A tensor that a smaller dtype changes."""


def apply_function(recorder: Recorder, original: Callable[..., Any], kind: type[Any], *args: Any, **kwargs: Any) -> Any:
    """In place of `torch.autograd.Function.apply`: the forward, and at once the backward, both recorded."""
    if recorder.paused:
        return original(*args, **kwargs)
    if kind is CheckpointFunction:  # its backward runs the function once more, with gradients: the textbook one
        function, _, *passed = args
        return function(*passed)
    wanted = recorder.gradients.enabled
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    context = Context(tuple(isinstance(arg, Tensor) and arg.is_floating_point() for arg in args))
    with recorder.without_gradients():
        if kind.setup_context is torch.autograd.Function.setup_context:
            output = kind.forward(context, *args, **kwargs)
        else:
            output = kind.forward(*args, **kwargs)
            kind.setup_context(context, args, output)
    outputs = [leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor)]
    if not wanted or not any(recorder.has_gradient(tensor) for tensor in tensors):
        return output
    given = _gradients(recorder, kind.backward, outputs, args, context)
    made = iter(_stand_for(recorder, outputs, [arg for arg in args if isinstance(arg, Tensor)], given))
    return tree_map_only(Tensor, lambda _: next(made), output)


def _gradients(
    recorder: Recorder, backward: Callable[..., Any], outputs: Sequence[Tensor], args: Sequence[Any], context: Context
) -> list[Tensor | None] | None:
    """The gradient that each tensor argument gets; None where the backward cannot be run on meta tensors."""
    with recorder.without_gradients():
        try:
            found = backward(context, *(gradient_of(recorder, output) for output in outputs))
        except Exception as error:  # whatever somebody's backward raises without data
            recorder.note(f"a backward of the model's own could not be traced ({type(error).__name__}: {error})")
            return None
    every = found if isinstance(found, tuple) else (found,)
    return [
        one if isinstance(one, Tensor) else None
        for arg, one in zip(args, every, strict=False)
        if isinstance(arg, Tensor)
    ]


def gradient_of(recorder: Recorder, value: Tensor) -> Tensor:
    """A gradient that lies as the value does."""
    with recorder.silent():
        made = torch.empty_like(value)
    recorder.record(GRADIENT_OF, (value,), {}, made)
    return made


def hooked(recorder: Recorder, value: Tensor, hook: Callable[[Tensor], Tensor | None]) -> Handle:
    """In place of `Tensor.register_hook`: what the hook makes of the value's gradient is recorded."""
    if not recorder.gradients.enabled or not recorder.has_gradient(value):
        return Handle()
    given: list[Tensor | None] | None
    with recorder.without_gradients():
        gradient = gradient_of(recorder, value)
        try:
            made = hook(gradient)
            given = [gradient if made is None else made]
        except Exception as error:  # whatever somebody's hook raises without data
            recorder.note(f"a hook on a gradient could not be traced ({type(error).__name__}: {error})")
            given = None
    before = recorder.number(value)
    recorder.record_by_number(OWN_BACKWARD, [before], [before], _numbers(recorder, given), [value])
    return Handle()


def _stand_for(
    recorder: Recorder, outputs: Sequence[Tensor], inputs: Sequence[Tensor], given: list[Tensor | None] | None
) -> list[Tensor]:
    """The outputs once more, as values through which a gradient flows."""
    with recorder.silent():
        made = [torch.empty_strided(o.shape, o.stride(), dtype=o.dtype, device=o.device) for o in outputs]
    numbers = [recorder.number(tensor) for tensor in inputs]
    recorder.record_by_number(
        OWN_BACKWARD, [recorder.number(o) for o in outputs], numbers, _numbers(recorder, given), made
    )
    return made


def _numbers(recorder: Recorder, given: list[Tensor | None] | None) -> list[int | None] | None:
    return None if given is None else [None if one is None else recorder.number(one) for one in given]
