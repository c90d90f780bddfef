"""The single-device model and the sharded one: a twin with random weights, or the real checkpoint."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.distributed.configuration_utils import DistributedConfig

from shardproof.planner.ir.plan import Plan, owner_of
from shardproof.planner.loading.adapters.adapted_state import adapted_state
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import plan_owners
from shardproof.planner.loading.implementations import mark
from shardproof.planner.loading.load import LoadedModel
from shardproof.planner.loading.quiet import quiet
from shardproof.planner.twins.quantised import quantised_state
from shardproof.planner.twins.random_state import random_state
from shardproof.planner.weights.quantised import method_of
from shardproof.verify.stages.case import Case

State = Mapping[str, torch.Tensor]


def reference_model(loaded: LoadedModel, device: torch.device) -> PreTrainedModel:
    """The twin on one device, in float64, with the weights that its class initialises."""
    torch.manual_seed(0)
    own = replace(loaded, config=copy.deepcopy(loaded.config))
    with quiet():
        model: nn.Module = build(own, device="cpu", dtype=torch.float64).to(device)
    assert isinstance(model, PreTrainedModel)
    return model


def single_device(case: Case, device: torch.device) -> PreTrainedModel:
    """The model on one device: the twin with the case's random state, or the real checkpoint in its own dtype."""
    if case.weights:
        model = _from_checkpoint(replace(case.loaded, config=copy.deepcopy(case.loaded.config)))
        nn.Module.to(model, device)
        return model
    made = reference_model(case.loaded, torch.device("cpu"))
    state = _twin_state(case, made)
    single = from_state(replace(case.loaded, config=copy.deepcopy(case.loaded.config)), state)
    freeze_as(single, made)
    nn.Module.to(single, device)
    return single


def _twin_state(case: Case, model: PreTrainedModel) -> State:
    """The case's random state, quantised where the twin is."""
    state = random_state(model, seed=case.seed)
    return state if method_of(case.loaded.config) is None else quantised_state(model, state)


def freeze_as(model: nn.Module, other: nn.Module) -> None:
    """Set `requires_grad` of every parameter as in the other model.

    A constructor may freeze a parameter; the client's loading unfreezes it where it is whole, but not where it is sharded
    (transformers 5.23.0, core_model_loading.py, `set_param_for_module`).
    """
    trained = {name: parameter.requires_grad for name, parameter in other.named_parameters()}
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(trained.get(name, parameter.requires_grad))


def checkpoint_form(case: Case, single: PreTrainedModel) -> State:
    """The weights of a twin as its checkpoint would hold them, for instance one tensor for each expert where the model stacks
    them.

    So the client's conversion of weights runs on the ranks' parts, as with a real checkpoint. Where the conversion cannot be
    reverted to the same bits on one device, the weights are as the model holds them. Source: transformers 5.23.0,
    core_model_loading.py, `revert_weight_conversion`; a model loaded from memory remembers no conversion of its own.
    """
    state = single.state_dict()
    if case.weights:
        return state
    if method_of(case.loaded.config) is not None:
        return _twin_state(case, reference_model(case.loaded, torch.device("cpu")))
    remembered = single.__dict__.pop("_weight_conversions", None)
    try:
        form = {name: value.contiguous() for name, value in revert_weight_conversion(single, _once(state)).items()}
        if form.keys() <= state.keys():
            return state
        loaded = replace(case.loaded, config=copy.deepcopy(case.loaded.config))
        again = from_state(loaded, form).state_dict()
    except Exception:  # a conversion that cannot be undone
        return state
    finally:
        single.__dict__["_weight_conversions"] = remembered
    return form if all(torch.equal(value.cpu(), again[name]) for name, value in state.items()) else state


def sharded_model(case: Case, state: State) -> PreTrainedModel:
    """The same model sharded by the client's own code: `from_pretrained` with a `DistributedConfig`.

    The plan under test replaces the one the model carries: on the config instance, and on a subclass of the head class. `state`
    are the twin's weights, preferably in the form of its checkpoint. A real checkpoint is read from its files again, since its
    sharding while loading is under test too. Source: transformers 5.23.0, distributed/mixin.py, `init_parallel_plans`.
    """
    planned = with_plan(case.loaded, case.plan)
    # With both plans, the client takes experts from the expert plan and the rest from the tensor plan, on the same ranks.
    experts: dict[str, Any] = {"ep_size": case.ep} if case.ep > 1 else {}  # up to 5.18 there is no such argument
    degrees = DistributedConfig(tp_size=case.tp, **experts)
    if case.weights:
        return _from_checkpoint(planned, degrees)
    return from_state(planned, state, degrees)


def from_state(loaded: LoadedModel, state: State, degrees: DistributedConfig | None = None) -> PreTrainedModel:
    """A model with these weights, loaded by the client's own code, on one device too.

    So buffers that no checkpoint holds, which the loading computes, are alike in both models. The weights are copied: the client
    keeps a tensor where it can, and two models that share one would agree even where one writes to it.
    """
    own = {name: value.clone() for name, value in _once(state).items()}
    with quiet():
        model = loaded.model_class.from_pretrained(
            None,
            config=loaded.config,
            state_dict=own,
            dtype=torch.float64,
            distributed_config=degrees,
            **loaded.asked.keywords(),
        )
    mark(model, loaded.asked)
    model._apply(_widened)
    model.eval()
    assert isinstance(model, PreTrainedModel)
    _own_leaves(model)
    if not loaded.model_class.__module__.startswith("transformers."):  # its own models' `_init_weights` fill theirs
        _fill(model, loaded)
    return model


def _own_leaves(model: nn.Module) -> None:
    """Give the model copies of modules that hold nothing: code may make one activation for all models of a process, and ranks may
    be threads, each of which hooks and puts back what is its own.
    """
    own: dict[int, nn.Module] = {}
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child is None or child._modules or child._parameters or child._buffers:
                continue
            if not child._forward_hooks and not child._forward_pre_hooks:
                module._modules[name] = own.setdefault(id(child), _copied(child))


def _copied(leaf: nn.Module) -> nn.Module:
    """A module that shares its attributes with another, and has no hooks."""
    made = copy.copy(leaf)
    vars(made).update({name: value for name, value in vars(nn.Module()).items() if name != "training"})
    return made


def _fill(model: PreTrainedModel, loaded: LoadedModel) -> None:
    """Fill buffers that no checkpoint holds, and that the client left uninitialised, with the constructor's values.

    The client builds a model on the meta device, and only `_init_weights` fills such a buffer again (transformers 5.23.0,
    modeling_utils.py, `_move_missing_keys_from_meta_to_device`). Older modeling code does not do so, and its buffers hold
    arbitrary memory, which says nothing about a plan.
    """
    held = model.state_dict().keys()
    lost = {name: buffer for name, buffer in model.named_buffers() if name not in held}
    built = dict(reference_model(loaded, torch.device("cpu")).named_buffers()) if lost else {}
    for name, buffer in lost.items():
        made = built.get(name)
        if made is not None and made.shape == buffer.shape and not _alike(buffer, made):
            buffer.copy_(made)


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one.double(), other.to(one.device).double(), rtol=1e-3, equal_nan=True)


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    """In float64, also a parameter that its model keeps in float32 whatever the dtype."""
    narrow = isinstance(tensor, nn.Parameter) and tensor.is_floating_point() and tensor.dtype is not torch.float64
    return tensor.double() if narrow else tensor


def _once(state: State) -> dict[str, torch.Tensor]:
    """Each tensor under one of its names, as the client saves tied weights."""
    names: dict[int, str] = {}
    for name, value in state.items():
        names.setdefault(value.data_ptr(), name)
    return {name: state[name] for name in names.values()}


def _from_checkpoint(loaded: LoadedModel, degrees: DistributedConfig | None = None) -> PreTrainedModel:
    """A real model from its checkpoint: a folder, or a GGUF file; with adapters, from theirs too."""
    if loaded.adapters:
        return _with_adapters(loaded, degrees)
    path = loaded.checkpoint
    if path is None:
        raise ValueError(
            f"{loaded.title} has no checkpoint to run; give a folder with weights, or leave --weights out."
        )
    read: Callable[..., PreTrainedModel] = loaded.model_class.from_pretrained
    more = loaded.asked.keywords() | ({} if degrees is None else {"distributed_config": degrees})
    if path.is_file():
        more["gguf_file"] = path.name
    with quiet():
        model = read(
            path.parent if path.is_file() else path,
            config=loaded.config,
            dtype="auto",
            **more,
        )
    mark(model, loaded.asked)
    model.eval()
    return model


def _with_adapters(loaded: LoadedModel, degrees: DistributedConfig | None) -> PreTrainedModel:
    """A base model and its adapters, loaded together by the client's own code.

    Raises:
        ValueError: a parameter got no weight, which would be random and other on every device.
    """
    read: Callable[..., Any] = loaded.model_class.from_pretrained  # beside the model, what was not found
    with quiet():
        model, told = read(
            None,
            config=loaded.config,
            state_dict=adapted_state(loaded),
            dtype="auto",
            distributed_config=degrees,
            output_loading_info=True,
            **loaded.asked.keywords(),
        )
    if missing := sorted(told["missing_keys"]):
        raise ValueError(f"neither the checkpoint nor an adapter holds {missing[0]}")
    mark(model, loaded.asked)
    model.eval()
    assert isinstance(model, PreTrainedModel)
    return model


def with_plan(loaded: LoadedModel, plan: Plan) -> LoadedModel:
    """The model with this plan on its config and class, instead of its own plan."""
    head: Mapping[str, object] = {
        "_tp_plan": {entry.pattern: entry.style for entry in plan.head_tp},
        "_pp_plan": {entry.module: (list(entry.inputs), list(entry.outputs)) for entry in plan.head_pp},
        "__module__": loaded.model_class.__module__,
    }
    config = copy.deepcopy(loaded.config)
    _put_entries(config, plan, plan_owners(build(loaded)))
    model_class = type(loaded.model_class.__name__, (loaded.model_class,), dict(head))
    return replace(loaded, config=config, model_class=model_class)


def _put_entries(config: PreTrainedConfig, plan: Plan, owners: Mapping[str, type]) -> None:
    """Put every entry on the config of the submodel that it belongs to: a submodel's config overrides the whole model's. Those of
    a submodel whose config the model's code makes itself stand on the whole model's, by their full names.
    """
    own = {key: value for key, value in plan.to_json().items() if key.startswith("base_model_")}
    path_of = {kind: path for path, kind in owners.items()}
    parts = {path_of.get(type(part)): part for part in _parts(config)}
    for part in _parts(config):
        path = path_of.get(type(part))
        for key, entries in own.items():
            assert isinstance(entries, dict)
            mine = {
                name.removeprefix(f"{path}."): value
                for name, value in entries.items()
                if path is not None and owner_of(name, owners) == path
            }
            if part is config:
                mine |= {name: value for name, value in entries.items() if owner_of(name, owners) not in parts}
            setattr(part, key, mine)


def _parts(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """A config and the configs in it."""
    yield config
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield from _parts(value)
