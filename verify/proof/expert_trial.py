"""Do experts give on ranks what they give on one device? Tried with numbers, on every experts module of a twin.

What an experts module does with the tokens that it is sent depends on data (`nonzero`, loops over hits), which no trace on meta
tensors sees whole. So the module itself is run: whole, and as each rank runs it behind the client's dispatch, on random weights
in float64, forward and backward. The dispatch is Transformers' in both of its forms (5.23.0, `distributed/expert_parallel.py`):
`AllReduceEP` in inference (every rank is given all tokens, with the ids of other ranks' experts masked) and `AllToAllEP` in
training (every rank is given the tokens of its own experts, one choice each, and the sender applies the weights).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from shardproof.planner.inputs.example import Sizes, caching
from shardproof.planner.inputs.numbers import real_inputs
from shardproof.planner.ir.findings import Finding, Place
from shardproof.planner.ir.plan import Plan, generic, join
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import base_prefix
from shardproof.planner.loading.load import LoadedModel
from shardproof.planner.loading.quiet import quiet
from shardproof.planner.twins.random_state import random_state
from shardproof.planner.twins.twin import TwinError, one_thread, twin
from shardproof.verify.findings import tp210, tp214
from shardproof.verify.proof.experts import DISPATCH, STACKED
from shardproof.verify.stages.exact import Wide

LIMIT = 1e-9
"""Relative, in float64: rounding stays far below, and a wrong sum far above."""
_SIZES = Sizes(2, 13, 13)


@dataclass(frozen=True, slots=True)
class Routing:
    """What an experts module is given: hidden states `[tokens, width]`, expert ids and weights `[tokens, choices]`."""

    hidden: Tensor
    ids: Tensor
    weights: Tensor


def try_experts(loaded: LoadedModel, plan: Plan, degree: int) -> tuple[Finding, ...]:
    """Findings TP214 of every experts module that the plan deals out to `degree` ranks, and TP210 where it cannot be tried."""
    with one_thread():
        return _tried(loaded, plan, degree)


def _tried(loaded: LoadedModel, plan: Plan, degree: int) -> tuple[Finding, ...]:
    try:
        with quiet():
            small = twin(loaded, tp=degree)
            model = build(small, device="cpu", dtype=torch.float64)
            model.load_state_dict(random_state(model))
            prefix = base_prefix(model)
        styles = {join(prefix, entry.pattern): entry.style for entry in plan.ep}
        with _kernels_of(loaded):
            given = _routings(model, styles)
    except TwinError as error:
        return (tp210.experts_not_tried(str(error), Place()),)
    except Exception as error:  # whatever the model's code raises on a small copy
        return (tp210.experts_not_tried(f"{type(error).__name__}: {error}", Place()),)
    found: dict[str, Finding] = {}
    for path, routing in given.items():
        module, pattern = model.get_submodule(path), generic(path)
        with _kernels_of(loaded):
            problem = next(_problems(module, routing, degree, _stacked(module, pattern, styles)), None)
        if problem is not None:
            found.setdefault(
                pattern,
                tp214.not_dispatchable(
                    path, pattern, problem=problem, found="other numbers, tried on a twin", needed="no such entry"
                ),
            )
    return tuple(found.values())


def _kernels_of(loaded: LoadedModel) -> AbstractContextManager[object]:
    """In float64 also what the kernel of an implementation that was asked for computes."""
    return nullcontext() if loaded.asked.experts is None else Wide()


def _routings(model: nn.Module, styles: Mapping[str, str]) -> dict[str, Routing]:
    """What each dispatched experts module is given in one forward of the model, by its path."""
    patterns = {pattern for pattern, style in styles.items() if style == DISPATCH}
    given: dict[str, Routing] = {}
    handles = []

    def noting(path: str) -> object:
        def note(_: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            if len(tensors) == 3:
                given[path] = Routing(*(tensor.detach() for tensor in tensors))

        return note

    for path, module in model.named_modules():
        if generic(path) in patterns:
            handles.append(module.register_forward_pre_hook(noting(path), with_kwargs=True))
    try:
        with torch.no_grad():
            model(**real_inputs(model, _SIZES), **caching(model, False))
    finally:
        for handle in handles:
            handle.remove()
    return given


def _stacked(module: nn.Module, pattern: str, styles: Mapping[str, str]) -> tuple[str, ...]:
    """The parameters of an experts module that a rank holds a part of."""
    names = [name for name, _ in module.named_parameters(recurse=False)]
    return tuple(name for name in names if styles.get(f"{pattern}.{name}") == STACKED)


def _problems(module: nn.Module, routing: Routing, degree: int, stacked: tuple[str, ...]) -> Iterator[str]:
    """What goes wrong with an experts module on ranks, the first fault first."""
    count = next((getattr(module, name).shape[0] for name in stacked), 0)
    if not count or count % degree:
        return
    for tokens in _variants(routing, count):
        for training in (False, True):
            module.train(training)
            try:
                want = _outputs_and_gradients(module, tokens, training, module)
            except Exception:  # not a routing that the module takes, on one device either
                continue
            try:
                ranks = [_rank(module, rank, degree, stacked) for rank in range(degree)]
                dispatched = partial(_all_to_all if training else _all_reduce, ranks, count // degree)
                got = _outputs_and_gradients(module, tokens, training, dispatched, ranks, stacked)
            except Exception as error:  # what the module raises on a rank
                yield f"behind the client's dispatch a rank raises ({type(error).__name__}: {error})"
                return
            finally:
                module.eval()
            for name, value in want.items():
                if not _alike(got[name], value):
                    mode = "training" if training else "inference"
                    yield f"in {mode} the ranks' {name} is not that of one device"
                    return


def _variants(routing: Routing, count: int) -> Iterator[Routing]:
    """The routing as the model made it; one token alone; and tokens that all choose the first, or the last, experts."""
    yield routing
    yield Routing(routing.hidden[:1], routing.ids[:1], routing.weights[:1])
    choices = torch.arange(routing.ids.shape[1]).expand_as(routing.ids)
    yield Routing(routing.hidden, choices % count, routing.weights)
    yield Routing(routing.hidden, (count - 1 - choices) % count, routing.weights)


def _outputs_and_gradients(
    module: nn.Module,
    routing: Routing,
    training: bool,
    run: Callable[..., Any],
    ranks: list[nn.Module] | None = None,
    stacked: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    """The output, and in training the gradients of hidden states, weights and parameters."""
    hidden, weights = (one.clone().requires_grad_(training) for one in (routing.hidden, routing.weights))
    holders = ranks if ranks is not None else [module]
    for holder in holders:
        for value in holder.parameters():
            value.grad = None
    with torch.set_grad_enabled(training):
        output = run(hidden, routing.ids, weights)
        output = output if isinstance(output, Tensor) else output[0]
    found = {"output": output.detach()}
    if training:
        generator = torch.Generator().manual_seed(1)
        (output * torch.randn(output.shape, generator=generator, dtype=output.dtype)).sum().backward()
        found |= {"gradient of the hidden states": _grad(hidden), "gradient of the routing weights": _grad(weights)}
        for name, _ in module.named_parameters(recurse=False):
            parts = [_grad(getattr(holder, name)) for holder in holders]
            whole = torch.cat(parts) if name in stacked else sum(parts[1:], parts[0])
            found[f"gradient of {name}"] = whole
    return found


def _grad(value: Tensor) -> Tensor:
    return value.grad if value.grad is not None else torch.zeros_like(value)


def _alike(got: Tensor, want: Tensor) -> bool:
    if got.shape != want.shape or not bool(torch.isfinite(got).all()):
        return not bool(torch.isfinite(want).all())
    scale = float(want.abs().max()) if want.numel() else 0.0
    return want.numel() == 0 or float((got - want).abs().max()) <= LIMIT * max(scale, 1e-6)


def _rank(module: nn.Module, rank: int, degree: int, stacked: tuple[str, ...]) -> nn.Module:
    """The experts module as one rank has it: its part of the stacked parameters, and the number of its own experts."""
    made = copy(module)
    made._parameters = dict(module._parameters)
    for name in stacked:
        whole = module._parameters[name]
        assert whole is not None
        made._parameters[name] = nn.Parameter(whole.detach().chunk(degree)[rank].clone())
    for name, value in module._parameters.items():
        if name not in stacked and value is not None:
            made._parameters[name] = nn.Parameter(value.detach().clone())
    if hasattr(module, "num_experts"):
        made.num_experts = vars(module)["num_experts"] // degree
    made._is_expert_parallel = True  # type: ignore[assignment]  # as the client sets it
    return made


def _all_reduce(ranks: list[nn.Module], own: int, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """`own`: the number of a rank's experts."""
    total = torch.zeros_like(hidden)
    for rank, module in enumerate(ranks):
        away = (ids // own) != rank
        output = module(hidden, torch.where(away, own, ids % own), weights.masked_fill(away, 0.0))
        total = total + (output if isinstance(output, Tensor) else output[0])
    return total


def _all_to_all(ranks: list[nn.Module], own: int, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """`own`: the number of a rank's experts."""
    choices = ids.shape[1]
    flat = ids.reshape(-1)
    # The ranks share the batch: each sends a slice of it, sorted by expert.
    slices = torch.arange(len(flat)).view(-1, choices).chunk(len(ranks))
    order = [part.reshape(-1)[torch.argsort(flat[part.reshape(-1)], stable=True)] for part in slices]
    results = torch.zeros((len(flat), hidden.shape[1]), dtype=hidden.dtype)
    for rank, module in enumerate(ranks):
        rows = torch.cat([part[(flat[part] // own) == rank] for part in order])
        tokens, local = hidden[rows // choices], (flat[rows] % own).unsqueeze(-1)
        if len(rows):
            output = module(tokens, local, torch.ones_like(local, dtype=hidden.dtype))
            output = output if isinstance(output, Tensor) else output[0]
            results = results.index_put((rows,), output)
    return (results.view(*ids.shape, -1) * weights.unsqueeze(-1)).sum(1)
