"""Does loading give what a checkpoint holds? Tried with the client's own code, on one device, on a twin.

Transformers 5 calls `_init_weights` after loading, for modules with a parameter or buffer that the checkpoint lacks. One that
writes through `.data`, or to another module's parameters by name, loses loaded weights, alike on one device and on ranks.
"""

from copy import deepcopy
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from shardproof.planner.loading.build import build
from shardproof.planner.loading.load import LoadedModel
from shardproof.planner.loading.quiet import quiet
from shardproof.planner.twins.random_state import random_state
from shardproof.planner.twins.twin import twin


@dataclass(frozen=True, slots=True)
class LoadingTrial:
    """`lost`: parameters that hold something else after loading than the checkpoint says; `untried`: why nothing is known."""

    lost: tuple[str, ...] = ()
    untried: str = ""


def try_loading(loaded: LoadedModel) -> LoadingTrial:
    """Load a small copy of the model from known weights and compare, once a model.

    Classes of Transformers itself are not tried: their `_init_weights` use functions that leave loaded tensors alone.
    """
    kept: dict[str, LoadingTrial] = vars(loaded)
    if "_loading_trial" not in kept:
        own = _own_init_weights(loaded.model_class)
        kept["_loading_trial"] = LoadingTrial() if own is None else _tried(loaded)
    return kept["_loading_trial"]


def _tried(loaded: LoadedModel) -> LoadingTrial:
    try:
        with quiet():
            small = twin(loaded, tp=1)
            state = random_state(build(small, device="cpu"))
            given = {name: value.clone() for name, value in state.items()}
            torch.manual_seed(0)
            model = small.model_class.from_pretrained(
                None, config=deepcopy(small.config), state_dict=given, dtype=torch.float64
            )
    except Exception as error:  # whatever a model's code raises on a small copy
        return LoadingTrial(untried=f"{type(error).__name__}: {error}")
    held = dict(model.named_parameters(remove_duplicate=False))
    return LoadingTrial(tuple(name for name, value in state.items() if name in held and not _same(held[name], value)))


def _same(held: torch.Tensor, given: torch.Tensor) -> bool:
    """Whether a parameter holds what it was given, in the dtype that the model's code makes it of."""
    return held.shape == given.shape and bool(torch.equal(held.detach(), given.to(held.dtype)))


def _own_init_weights(kind: type[PreTrainedModel]) -> type | None:
    """The class that defines `_init_weights`, where that is not one of Transformers' own."""
    owner = next((one for one in kind.__mro__ if "_init_weights" in vars(one)), None)
    return owner if owner is not None and not owner.__module__.startswith("transformers.") else None
