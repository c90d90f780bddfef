"""The per-rank program: the same forward, on meta tensors, with the parameters at their local size and the styles' hooks.

What a hook does becomes one op whose target starts with `tp.`; everything else must be the single-device program again.
Facts on the hooks: `planner.ir.styles`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from planner.frontend.trace import Recorder, Tracing, example_inputs
from planner.ir.graph import Graph
from planner.ir.placement import Placement, R, Shard, local_shape
from planner.ir.plan import generic
from planner.ir.styles import STYLES, After, Before, Style


@dataclass(frozen=True, slots=True)
class Assigned:
    """A plan spread over a model: the style and entry of every module, the placement and entry of every parameter."""

    modules: Mapping[str, tuple[Style, str]]
    parameters: Mapping[str, tuple[Placement, str]]


def assign(model: nn.Module, styles: Mapping[str, str]) -> Assigned:
    """Spread a plan (keys as this model sees them) over modules and parameters, as Transformers 5.23 does.

    Layer numbers match `*`; then the key is looked up exactly; a parameter falls back to its own module only. Unknown styles
    are left out: the plan check reports them.
    """
    modules: dict[str, tuple[Style, str]] = {}
    parameters: dict[str, tuple[Placement, str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        key = generic(path)
        if (name := styles.get(key)) in STYLES:
            modules[path] = (STYLES[name or ""], key)
        for local, tensor in module.named_parameters(recurse=False):
            entry = next((k for k in (generic(f"{path}.{local}" if path else local), key) if k in styles), None)
            if entry is not None and styles[entry] in STYLES:
                placement = STYLES[styles[entry]].placement(local, tensor.dim())
                parameters[f"{path}.{local}" if path else local] = (placement, entry)
    return Assigned(modules, parameters)


class IndivisibleError(ValueError):
    """A parameter whose dim does not divide evenly over the ranks."""

    def __init__(self, parameter: str, entry: str, placement: Placement, shape: tuple[int, ...], degree: int) -> None:
        super().__init__(f"{parameter} {list(shape)} at {placement} does not divide over {degree} ranks")
        self.parameter, self.entry, self.placement, self.shape, self.degree = parameter, entry, placement, shape, degree


def trace_local(model: nn.Module, assigned: Assigned, degree: int, inputs: Mapping[str, Any] | None = None) -> Graph:
    """Record one rank's program. The model is changed: build it anew for another trace.

    Raises:
        IndivisibleError: a parameter does not divide; see its fields.
        TraceError: the local program fails by itself, for example in a view with the global head count in it.
    """
    tied = _shrink(model, assigned, degree)
    tracing = Tracing(model)
    for path, (style, _) in assigned.modules.items():
        if style.before is not Before.NOTHING or style.after is not After.NOTHING:
            _hook(model, path, style, tracing.recorder, degree)
    graph = tracing.run(inputs if inputs is not None else example_inputs(model))
    del tied
    return graph


def _shrink(model: nn.Module, assigned: Assigned, degree: int) -> list[Tensor]:
    """Replace every sharded parameter by one of its local shape; tied parameters stay tied where they are placed alike."""
    made: dict[tuple[int, str], nn.Parameter] = {}
    held: list[Tensor] = []
    for path, module in model.named_modules(remove_duplicate=False):
        for local, tensor in list(module.named_parameters(recurse=False)):
            name = f"{path}.{local}" if path else local
            placement, entry = assigned.parameters.get(name, (R, ""))
            if not isinstance(placement, Shard):
                continue
            try:
                shape = local_shape(tuple(tensor.shape), placement, degree)
            except ValueError:
                raise IndivisibleError(name, entry, placement, tuple(tensor.shape), degree) from None
            held.append(tensor)
            key = (id(tensor), str(placement))
            if key not in made:
                made[key] = nn.Parameter(torch.empty(shape, dtype=tensor.dtype, device="meta"), requires_grad=False)
            module._parameters[local] = made[key]
    return held


def _hook(model: nn.Module, path: str, style: Style, recorder: Recorder, degree: int) -> None:
    """Wrap one module's forward in what its style does around it."""
    module = model.get_submodule(path)
    original: Callable[..., Any] = module.forward
    before, after = _BEFORE[style.before], _AFTER[style.after]

    def forward(*args: Any, **kwargs: Any) -> Any:
        args = before(recorder, args, degree)
        output = original(*args, **kwargs)
        return after(recorder, output, degree) if isinstance(output, Tensor) else output

    module.forward = forward  # type: ignore[method-assign]


def _emit(recorder: Recorder, target: str, tensor: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
    with recorder.silent():
        made = torch.empty(tensor.shape if shape is None else shape, dtype=tensor.dtype, device="meta")
    recorder.record(target, (tensor,), {}, made)
    return made


def _last(tensor: Tensor, size: int) -> tuple[int, ...]:
    return (*tensor.shape[:-1], size)


def _first_arg(target: str) -> Callable[[Recorder, tuple[Any, ...], int], tuple[Any, ...]]:
    def before(recorder: Recorder, args: tuple[Any, ...], degree: int) -> tuple[Any, ...]:
        return (_emit(recorder, target, args[0]), *args[1:]) if args and isinstance(args[0], Tensor) else args

    return before


def _split(recorder: Recorder, args: tuple[Any, ...], degree: int) -> tuple[Any, ...]:
    width = args[0].shape[-1]
    return (_emit(recorder, "tp.split", args[0], _last(args[0], width // degree)), *args[1:])


def _routing(recorder: Recorder, args: tuple[Any, ...], degree: int) -> tuple[Any, ...]:
    hidden, *routing = args
    hidden = _emit(recorder, "tp.enter", hidden)
    if len(routing) >= 2:
        routing[1] = _emit(recorder, "tp.enter", routing[1])
    return (hidden, *routing)


def _nothing(recorder: Recorder, args: Any, degree: int) -> Any:
    return args


_BEFORE: Mapping[Before, Callable[[Recorder, tuple[Any, ...], int], tuple[Any, ...]]] = {
    Before.NOTHING: _nothing,
    Before.TAKE_REPLICATED: _first_arg("tp.enter"),
    Before.TAKE_SHARDED: _first_arg("tp.sharded"),
    Before.SPLIT: _split,
    Before.TAKE_IDS: _first_arg("tp.ids"),
    Before.REDUCE_ROUTING_GRADIENTS: _routing,
    Before.DIVIDE: _first_arg("tp.divide"),
    Before.TAKE_SEQUENCE: _first_arg("tp.sequence"),
}

_AFTER: Mapping[After, Callable[[Recorder, Tensor, int], Any]] = {
    After.NOTHING: _nothing,
    After.GATHER: lambda recorder, out, degree: _emit(recorder, "tp.gather", out, _last(out, out.shape[-1] * degree)),
    After.REDUCE: lambda recorder, out, degree: _emit(recorder, "tp.reduce", out),
    After.REDUCE_ROPE_GRADIENT: lambda recorder, out, degree: _emit(recorder, "tp.rope", out),
}
