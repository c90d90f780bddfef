"""The per-rank program: the same forward, on meta tensors, with the parameters at their local size and the styles' hooks.

What a hook does becomes one op whose target starts with `tp.`; everything else must be the single-device program again.
Facts on the hooks: `planner.ir.styles`.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from shardproof.planner.inputs.example import example_inputs
from shardproof.planner.inputs.run_modes import Script
from shardproof.planner.ir.findings import Source
from shardproof.planner.ir.graph import STRIDED, Graph
from shardproof.planner.ir.placement import Placement, R, Shard, local_shape
from shardproof.planner.ir.styles import After, Before, Reach, Style
from shardproof.planner.propagation.assign import Assigned
from shardproof.planner.tracing.recorded_run import Tracing
from shardproof.planner.tracing.recorder import Recorder
from shardproof.planner.tracing.session import TRACING

_Held: TypeAlias = "dict[nn.Module, dict[str, nn.Parameter | None]]"


class HookError(TypeError):
    """A style's hook on a module that is not called, or does not answer, with a tensor: the client's hook raises there too."""


class IndivisibleError(ValueError):
    """A parameter whose dim does not divide evenly over the ranks."""

    def __init__(self, parameter: str, entry: str, placement: Placement, shape: tuple[int, ...], degree: int) -> None:
        super().__init__(f"{parameter} {list(shape)} at {placement} does not divide over {degree} ranks")
        self.parameter, self.entry, self.placement, self.shape, self.degree = parameter, entry, placement, shape, degree


def trace_local(
    model: nn.Module,
    assigned: Assigned,
    degree: int,
    inputs: Mapping[str, Any] | None = None,
    *,
    script: Script | None = None,
    unfixed: Mapping[Source, int] | None = None,
    left: dict[str, list[Tensor]] | None = None,
    distributed: bool = True,
) -> Graph:
    """Record one rank's program. The model is changed for the time of the trace, and given back as it was.

    `script` is run in place of one forward in evaluation on `inputs`. With `unfixed`, views at these source lines leave this dim
    (counted from the end, so negative) open. `left` is told the tensors that the forward leaves in modules, which are taken away
    from them. `distributed`: the client keeps what it shards as distributed tensors; code that asks for their size, where no
    style makes them local, is told that of the whole.

    Raises:
        IndivisibleError: a parameter does not divide; see its fields.
        TraceError: the local program fails by itself, for example in a view with the global head count in it.
    """
    # Asked before a hook hides the forward.
    given = example_inputs(model) if script is None and inputs is None else inputs or {}
    with TRACING, ExitStack() as undo:
        held = {module: dict(module._parameters) for module in model.modules()}
        undo.callback(_put_back, held)
        whole = _shrink(model, assigned, degree)
        tracing = Tracing(model)
        tracing.recorder.unfixed, tracing.recorder.whole = unfixed or {}, whole if distributed else {}
        hooked: set[int] = set()
        for path, (style, _) in assigned.modules.items():
            module = model.get_submodule(path)
            hooks = style.before is not Before.NOTHING or style.after is not After.NOTHING
            if hooks and id(module) not in hooked:  # a module may have two paths
                hooked.add(id(module))
                undo.callback(_restore_forward, module, vars(module).get("forward"))
                _hook(model, path, style, tracing.recorder, degree, _width(model, path, assigned, held))
        graph = tracing.run(given) if script is None else tracing.run_script(script)
        if left is not None:
            left.update(tracing.left)
        return graph


def _put_back(held: _Held) -> None:
    for module, parameters in held.items():
        module._parameters.update(parameters)


def _restore_forward(module: nn.Module, own: Any) -> None:
    """Take a wrapped forward away; a forward that the instance had as its own comes back."""
    vars(module).pop("forward", None)
    if own is not None:
        module.forward = own


def _shrink(model: nn.Module, assigned: Assigned, degree: int) -> dict[int, tuple[torch.Size, tuple[nn.Module, ...]]]:
    """Replace every sharded parameter by one of its local shape; tied parameters stay tied where they are placed alike.

    Returns what the recorder is to know of the parameters that are made.
    """
    made: dict[tuple[int, str], nn.Parameter] = {}
    whole: dict[int, tuple[torch.Size, tuple[nn.Module, ...]]] = {}
    for path, module in model.named_modules():  # a module that is shared stands once
        style = assigned.modules.get(path)
        local_in = (module,) if style is not None and style[0].reach is Reach.BELOW else ()
        for local, tensor in list(module.named_parameters(recurse=False)):
            name = f"{path}.{local}" if path else local
            placement, entry = assigned.parameters.get(name, (R, ""))
            if not isinstance(placement, Shard):
                continue
            try:
                shape = local_shape(tuple(tensor.shape), placement, degree)
            except ValueError:
                raise IndivisibleError(name, entry, placement, tuple(tensor.shape), degree) from None
            key = (id(tensor), str(placement))
            if key not in made:
                local_part = torch.empty(shape, dtype=tensor.dtype, device="meta")
                made[key] = nn.Parameter(local_part, requires_grad=tensor.requires_grad)
            module._parameters[local] = made[key]
            whole[id(made[key])] = (tensor.shape, (*whole.get(id(made[key]), (tensor.shape, ()))[1], *local_in))
    return whole


def _width(model: nn.Module, path: str, assigned: Assigned, held: _Held) -> int:
    """The whole size of what a module's own parameters split: as wide as its output is where that is gathered."""
    own = held[model.get_submodule(path)]
    placed = ((own[local], assigned.parameters.get(f"{path}.{local}", (R, ""))[0]) for local in own)
    return max((p.shape[at.dim] for p, at in placed if p is not None and isinstance(at, Shard)), default=0)


def _hook(model: nn.Module, path: str, style: Style, recorder: Recorder, degree: int, width: int) -> None:
    """Wrap one module's forward in what its style does around it."""
    module = model.get_submodule(path)
    if style.reach is Reach.OWN and not isinstance(module, nn.Linear):
        recorder.distributed.add(id(module))  # a linear layer's own tensors are local where nothing is trained
    if style.after is After.REDUCE_ROPE_GRADIENT:
        _hook_rope(module, recorder, _rope_width(model))
        return
    original: Callable[..., Any] = module.forward
    takes_shard = style.before is Before.TAKE_SHARDED and isinstance(module, nn.Linear)
    before, after = _linear_shard if takes_shard else _BEFORE[style.before], _AFTER[style.after]
    width = int(getattr(module, style.needs or "", width))

    def forward(*args: Any, **kwargs: Any) -> Any:
        with recorder.inside(path, module):
            args = before(recorder, args, degree)
            output = original(*args, **kwargs)
            if isinstance(output, Tensor) and style.reach is Reach.OWN:
                recorder.client_outputs[id(output)] = path
            if style.after is After.NOTHING or output is None:
                return output
            if not isinstance(output, Tensor):
                raise HookError(f"{style.name} takes a tensor, and this module gives a {type(output).__name__}")
            made = after(recorder, output, -(-output.shape[-1] // degree) if style.after is After.SPLIT else width)
            recorder.client_outputs[id(made)] = path
            return made

    module.forward = forward


def _hook_rope(module: nn.Module, recorder: Recorder, width: int) -> None:
    original: Callable[..., Any] = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        with recorder.silent():
            made = torch.empty_like(output)
        recorder.record("tp.rope", (output, width), {}, made)
        return made

    module.forward = forward


def _rope_width(model: nn.Module) -> int:
    """`qk_rope_head_dim` of the text config, which `mla_kv_a_proj` reads; 0 where the config has none."""
    config: Any = model.config
    return int(getattr(config.get_text_config(), "qk_rope_head_dim", 0) or 0)


def _emit(recorder: Recorder, target: str, tensor: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
    with recorder.silent():
        made = torch.empty(tensor.shape if shape is None else shape, dtype=tensor.dtype, device="meta")
    recorder.record(target, (tensor,), {}, made)
    return made


def _last(tensor: Tensor, size: int) -> tuple[int, ...]:
    return (*tensor.shape[:-1], size)


def _first(args: tuple[Any, ...]) -> Tensor:
    """The positional argument that a hook acts on."""
    if args and isinstance(args[0], Tensor):
        return args[0]
    found = f"a {type(args[0]).__name__} there" if args else "no positional argument"
    raise HookError(f"the style takes a tensor as the first positional argument, and this call has {found}")


def _first_arg(target: str) -> Callable[[Recorder, tuple[Any, ...], int], tuple[Any, ...]]:
    def before(recorder: Recorder, args: tuple[Any, ...], degree: int) -> tuple[Any, ...]:
        return (_emit(recorder, target, _first(args)), *args[1:])

    return before


def _linear_shard(recorder: Recorder, args: tuple[Any, ...], degree: int) -> tuple[Any, ...]:
    """Where it is trained, the client takes the shard for contiguous, and the linear layer views it as rows: noted where that
    cannot be.
    """
    tensor = _first(args)
    with recorder.silent():
        made = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        noted = () if _views_as_rows(tensor) else (STRIDED,)
    recorder.record("tp.sharded", (tensor, *noted), {}, made)
    return (made, *args[1:])


def _views_as_rows(tensor: Tensor) -> bool:
    try:
        tensor.view(-1, tensor.shape[-1])
    except RuntimeError:
        return False
    return True


def _split(recorder: Recorder, args: tuple[Any, ...], degree: int) -> tuple[Any, ...]:
    tensor = _first(args)
    width = tensor.shape[-1]
    return (_emit(recorder, "tp.split", tensor, _last(tensor, -(-width // degree))), *args[1:])


def _routing(recorder: Recorder, args: tuple[Any, ...], degree: int) -> tuple[Any, ...]:
    routing = list(args[1:])
    hidden = _emit(recorder, "tp.enter", _first(args))
    if len(routing) >= 2:
        routing[1] = _emit(recorder, "tp.enter", routing[1])
    return (hidden, *routing)


def _gather(recorder: Recorder, args: tuple[Any, ...], degree: int) -> tuple[Any, ...]:
    return (_emit(recorder, "tp.gather", args[0], _last(args[0], args[0].shape[-1] * degree)), *args[1:])


def _nothing(recorder: Recorder, value: Any, number: int) -> Any:
    return value


_BEFORE: Mapping[Before, Callable[[Recorder, tuple[Any, ...], int], tuple[Any, ...]]] = {
    Before.NOTHING: _nothing,
    Before.TAKE_REPLICATED: _first_arg("tp.enter"),
    Before.TAKE_SHARDED: _first_arg("tp.sharded"),
    Before.SPLIT: _split,
    Before.TAKE_IDS: _first_arg("tp.ids"),
    Before.REDUCE_ROUTING_GRADIENTS: _routing,
    Before.DIVIDE: _first_arg("tp.divide"),
    Before.TAKE_SEQUENCE: _first_arg("tp.sequence"),
    Before.GATHER: _gather,
}

_AFTER: Mapping[After, Callable[[Recorder, Tensor, int], Any]] = {
    After.NOTHING: _nothing,
    After.GATHER: lambda recorder, out, width: _emit(recorder, "tp.gather", out, _last(out, width)),
    After.REDUCE: lambda recorder, out, width: _emit(recorder, "tp.reduce", out),
    After.SPLIT: lambda recorder, out, width: _emit(recorder, "tp.split", out, _last(out, width)),
}
