"""Where training draws random numbers, and which ranks must draw alike."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from shardproof.planner.ir.findings import Fault
from shardproof.planner.ir.plan import generic
from shardproof.planner.weights.shards import local
from shardproof.verify.run.compare.tensors import LIMIT, relative_error
from shardproof.verify.run.gradient_questions import model_loss
from shardproof.verify.run.training.asking import Measured, TrainingQuestion, Way
from shardproof.verify.run.training.bench import NothingToAskError, TrainingBench, on_one_device

_RATE = 0.2
_SEED = 7
_SITES = 6
"""At most so many places are named."""


@dataclass(frozen=True, slots=True)
class DropoutSite:
    """One call that drops elements in training: the module that makes it, and the shape of what this rank holds there."""

    module: str
    shape: tuple[int, ...]


class _Dropping(TorchFunctionMode):
    """Every dropout of a training forward drops, whatever its rate; each is noted with the module that makes it."""

    def __init__(self, inside: Sequence[str], sites: list[DropoutSite]) -> None:
        self.inside, self.sites = inside, sites

    def __torch_function__(  # type: ignore[no-untyped-def]  # torch's own signature is untyped
        self, func: Callable[..., object], types: Sequence[type], args: tuple[object, ...] = (), kwargs=None
    ):
        given = dict(kwargs or {})
        if func is F.dropout:
            named = dict(zip(("input", "p", "training", "inplace"), args, strict=False)) | given
            if named.get("training", True):
                value = named["input"]
                assert isinstance(value, torch.Tensor)
                self._note(value)
                return F.dropout(value, _RATE, True, False)
        if func is F.scaled_dot_product_attention and "dropout_p" in given:
            query = args[0] if args else given["query"]
            assert isinstance(query, torch.Tensor)
            self._note(query)
            given["dropout_p"] = _RATE
        return func(*args, **given)

    def _note(self, value: torch.Tensor) -> None:
        module = self.inside[-1] if self.inside else ""
        self.sites.append(DropoutSite(generic(module), tuple(local(value).shape)))


@contextmanager
def _dropping(model: PreTrainedModel) -> Iterator[list[DropoutSite]]:
    inside: list[str] = []
    sites: list[DropoutSite] = []
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(partial(_entered, inside, name)))
        handles.append(module.register_forward_hook(partial(_left, inside), always_call=True))
    try:
        with _Dropping(inside, sites):
            yield sites
    finally:
        for handle in handles:
            handle.remove()


def _entered(inside: list[str], name: str, *_: object) -> None:
    inside.append(name)


def _left(inside: list[str], *_: object) -> None:
    inside.pop()


def _dropped_backward(model: PreTrainedModel, bench: TrainingBench, *, seed: int) -> list[DropoutSite]:
    torch.manual_seed(seed)
    with _dropping(model) as sites:
        model_loss(model, bench.batches[0]).backward()
    return sites


def _drift(bench: TrainingBench, *, seed: int) -> tuple[float, str, list[DropoutSite]]:
    """How far the gradients of parameters that every rank holds whole differ between ranks, and for which the most."""
    ours = bench.sharded()
    sites = _dropped_backward(ours, bench, seed=seed)
    shapes = {name: value.shape for name, value in bench.single.named_parameters()}
    furthest, place = 0.0, ""
    for name, value in ours.named_parameters():
        if value.grad is None or local(value).shape != shapes.get(name):
            continue
        mine = local(value.grad).contiguous()
        first = mine.clone()
        dist.broadcast(first, src=0)
        if (error := relative_error(mine, first)) > furthest:
            furthest, place = error, name
    return furthest, place, sites


def _alike(bench: TrainingBench) -> Measured:
    """With one seed on every rank, replicas stay alike."""
    whole, parts, unknown = _sites(bench)
    error, place, _ = _drift(bench, seed=_SEED)
    return Measured(error, LIMIT, place, _rule(whole, parts, unknown))


def _apart(bench: TrainingBench) -> Measured:
    """With a seed of its own on every rank, replicas stay alike only where every draw is for a rank's own part."""
    _sites(bench)
    error, place, _ = _drift(bench, seed=_SEED + bench.rank)
    return Measured(error, LIMIT, place)


def _sites(bench: TrainingBench) -> tuple[list[str], list[str], bool]:
    """Modules that drop elements of what every rank holds whole, those that drop of a part, and whether some are not known."""
    alone = bench.alone()
    want = on_one_device(lambda: _dropped_backward(alone, bench, seed=_SEED))
    if not want:
        raise NothingToAskError("no call of functional dropout, nor of attention with a dropout rate, was seen")
    got = _dropped_backward(bench.sharded(), bench, seed=_SEED)
    if [site.module for site in got] != [site.module for site in want]:
        return [], [], True
    whole = [site.module for site, other in zip(got, want, strict=True) if site.shape == other.shape]
    parts = [site.module for site, other in zip(got, want, strict=True) if site.shape != other.shape]
    return list(dict.fromkeys(whole)), list(dict.fromkeys(parts)), False


def _rule(whole: Sequence[str], parts: Sequence[str], unknown: bool) -> str:
    if unknown:
        return "the ranks drop at other places than one device"
    said = []
    if whole:
        said.append(f"ranks must draw alike in {_listed(whole)}")
    if parts:
        said.append(
            f"each rank drops of its own part in {_listed(parts)}, where one seed gives every rank the same pattern"
        )
    return "; ".join(said)


def _listed(modules: Sequence[str]) -> str:
    more = f" and {len(modules) - _SITES} more" if len(modules) > _SITES else ""
    return ", ".join(module or "the model itself" for module in modules[:_SITES]) + more


_ONE_SEED = Way("torch.manual_seed(seed), the same on every rank", _alike)
DROPOUT_APART = TrainingQuestion(
    "dropout, a seed a rank",
    "TR605",
    (Way("torch.manual_seed(seed + rank)", _apart), _ONE_SEED),
    Fault.CALLER,
)
DROPOUT_ALIKE = TrainingQuestion("dropout, one seed", "TR605", (_ONE_SEED,))
