"""Clipping by norm, accumulation of gradients, and steps of the optimizer."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from shardproof.planner.weights.shards import whole
from shardproof.verify.run.compare.tensors import LIMIT, relative_error
from shardproof.verify.run.inputs import Inputs
from shardproof.verify.run.training.asking import Measured, TrainingQuestion, Way
from shardproof.verify.run.training.bench import (
    NotAskedError,
    TrainingBench,
    backward,
    gradients,
    on_one_device,
    worst_gradient,
)

_MOVED = 1e-5
"""How far parameters may differ after steps of AdamW, relative to the furthest that any moved: it divides each gradient by its
own size, which multiplies the rounding of one that is nearly zero."""
_RATE = 1e-3

Clip = Callable[[PreTrainedModel, float], torch.Tensor]
Optimizer = Callable[[PreTrainedModel], torch.optim.Optimizer]


def _step(bench: TrainingBench) -> Measured:
    """One forward and backward in training mode; not asked where one device draws random numbers."""
    alone = bench.alone()
    loss = on_one_device(lambda: backward(alone, bench.batches[0]))
    want = gradients(alone)
    alone.zero_grad(set_to_none=True)
    if not torch.equal(loss, backward(alone, bench.batches[0])):
        raise NotAskedError("one device draws random numbers in training, also without dropout")
    ours = bench.sharded()
    got = backward(ours, bench.batches[0])
    worst = worst_gradient(gradients(ours), want)
    error = max(worst.error, relative_error(whole(got), loss))
    return Measured(error, LIMIT, worst.place)


def _clipped(clip: Clip, bench: TrainingBench) -> Measured:
    """Half of the gradients' norm is the bound: the norm that is returned, and the clipped gradients, are compared."""
    alone, ours = bench.alone(), bench.sharded()
    on_one_device(lambda: backward(alone, bench.batches[0]))
    norm = float(torch.nn.utils.get_total_norm([p.grad for p in alone.parameters() if p.grad is not None]))
    torch.nn.utils.clip_grad_norm_(alone.parameters(), norm / 2)
    backward(ours, bench.batches[0])
    got = float(whole(clip(ours, norm / 2)))
    worst = worst_gradient(gradients(ours), gradients(alone))
    error = abs(got - norm) / norm if norm else abs(got)
    return Measured(max(error, worst.error), LIMIT, worst.place, f"norm {got:.4g}, of one device {norm:.4g}")


def _clip(model: PreTrainedModel, bound: float) -> torch.Tensor:
    norm: torch.Tensor = torch.nn.utils.clip_grad_norm_(model.parameters(), bound)
    return norm


def _clip_by_kind(model: PreTrainedModel, bound: float) -> torch.Tensor:
    """The norm over distributed and plain tensors apart, put together, and each kind scaled by it."""
    kinds = _by_kind(model)
    norms = [torch.nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None]) for kind in kinds]
    total: torch.Tensor = torch.linalg.vector_norm(torch.stack([whole(norm) for norm in norms]))
    for kind in kinds:
        torch.nn.utils.clip_grads_with_norm_(kind, bound, total)
    return total


def _by_kind(model: PreTrainedModel) -> list[list[nn.Parameter]]:
    """The trained parameters: distributed tensors, and plain ones; a kind of which there is none is left out."""
    kinds: dict[bool, list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            kinds.setdefault(isinstance(parameter, DTensor), []).append(parameter)
    return list(kinds.values())


def _in_two(bench: TrainingBench) -> Measured:
    """Two backwards without zeroing: the sum of both gradients."""
    return _summed(bench, lambda model: [backward(model, batch) for batch in bench.batches[:2]])


def _in_one(bench: TrainingBench) -> Measured:
    """One backward a batch, the gradients put aside and added up by the caller."""

    def apart(model: PreTrainedModel) -> None:
        kept: dict[str, torch.Tensor] = {}
        for batch in bench.batches[:2]:
            model.zero_grad(set_to_none=True)
            backward(model, batch)
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    kept[name] = parameter.grad + kept[name] if name in kept else parameter.grad
        for name, parameter in model.named_parameters():
            parameter.grad = kept.get(name)

    return _summed(bench, apart)


def _summed(bench: TrainingBench, run: Callable[[PreTrainedModel], object]) -> Measured:
    return same_gradients(bench, run, lambda model: [backward(model, batch) for batch in bench.batches[:2]])


def same_gradients(
    bench: TrainingBench, run: Callable[[PreTrainedModel], object], alone_run: Callable[[PreTrainedModel], object]
) -> Measured:
    """The gradients that `run` leaves on the ranks against those that `alone_run` leaves on one device."""
    alone, ours = bench.alone(), bench.sharded()
    on_one_device(lambda: alone_run(alone))
    run(ours)
    worst = worst_gradient(gradients(ours), gradients(alone))
    return Measured(worst.error, LIMIT, worst.place)


def _zeroed(bench: TrainingBench) -> Measured:
    """Two batches with `zero_grad(set_to_none=False)` between: the second gradient alone."""

    def run(model: PreTrainedModel) -> None:
        backward(model, bench.batches[0])
        model.zero_grad(set_to_none=False)
        backward(model, bench.batches[1])

    return same_gradients(bench, run, run)


def _stepped(make: Optimizer, bench: TrainingBench) -> Measured:
    """Steps of AdamW on fresh batches; how far every parameter moved is compared."""
    alone, ours = bench.alone(), bench.sharded()
    before = {name: value.detach().clone() for name, value in alone.named_parameters()}
    on_one_device(lambda: steps(alone, adamw(alone), bench))
    steps(ours, make(ours), bench)
    return moved(before, dict(alone.named_parameters()), dict(ours.named_parameters()))


def steps(model: PreTrainedModel, optimizer: torch.optim.Optimizer, bench: TrainingBench) -> None:
    """One step of the optimizer for each batch."""
    for batch in bench.batches:
        step(model, optimizer, batch)


def step(model: PreTrainedModel, optimizer: torch.optim.Optimizer, batch: Inputs) -> None:
    """One step of the optimizer on one batch."""
    optimizer.zero_grad()
    backward(model, batch)
    optimizer.step()


def moved(
    before: Mapping[str, torch.Tensor], want: Mapping[str, torch.Tensor], got: Mapping[str, torch.Tensor]
) -> Measured:
    """How far the parameters of the ranks moved away from those of one device, relative to the furthest that any moved."""
    scale = max((float((want[name] - start).abs().max()) for name, start in before.items() if start.numel()), default=0)
    errors = {
        name: relative_error(whole(got[name].detach()) - start, want[name].detach() - start, floor=scale)
        for name, start in before.items()
    }
    place = max(errors, key=lambda name: errors[name], default="")
    return Measured(errors.get(place, 0.0), _MOVED, place)


def adamw(model: PreTrainedModel) -> torch.optim.Optimizer:
    """AdamW as torch chooses its implementation: one tensor at a time on a CPU."""
    return torch.optim.AdamW(_trained(model), lr=_RATE)


def _adamw_foreach(model: PreTrainedModel) -> torch.optim.Optimizer:
    return torch.optim.AdamW(_trained(model), lr=_RATE, foreach=True)


def _adamw_by_kind(model: PreTrainedModel) -> torch.optim.Optimizer:
    return torch.optim.AdamW([{"params": kind} for kind in _by_kind(model)], lr=_RATE, foreach=True)


def _trained(model: PreTrainedModel) -> Iterable[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


TRAINING_STEP = TrainingQuestion("training step", "TR600", (Way("loss.backward() in training mode", _step),))
CLIPPING = TrainingQuestion(
    "clipping",
    "TR601",
    (
        Way("torch.nn.utils.clip_grad_norm_(model.parameters(), bound)", partial(_clipped, _clip)),
        Way(
            "the norms of distributed and of plain gradients apart (get_total_norm), put together, and each kind scaled "
            "by clip_grads_with_norm_",
            partial(_clipped, _clip_by_kind),
        ),
    ),
)
ACCUMULATION = TrainingQuestion(
    "accumulation",
    "TR602",
    (
        Way("two backwards without zero_grad", _in_two),
        Way("zero_grad before every backward, the gradients added up by the caller", _in_one),
    ),
)
ZEROING = TrainingQuestion(
    "zeroed in place", "TR602", (Way("optimizer.zero_grad(set_to_none=False)", _zeroed), Way("zero_grad()", _in_one))
)
_ONE_BY_ONE = Way("torch.optim.AdamW(model.parameters(), foreach=False), as on a CPU", partial(_stepped, adamw))
ADAMW = TrainingQuestion("AdamW", "TR603", (_ONE_BY_ONE,))
ADAMW_FOREACH = TrainingQuestion(
    "AdamW over lists",
    "TR603",
    (
        Way("torch.optim.AdamW(model.parameters(), foreach=True), as on a GPU", partial(_stepped, _adamw_foreach)),
        Way("two parameter groups, distributed tensors and plain ones", partial(_stepped, _adamw_by_kind)),
        _ONE_BY_ONE,
    ),
)
