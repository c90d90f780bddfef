"""The single-device model, the sharded one, and the same questions asked of both."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.distributed.configuration_utils import DistributedConfig

from planner.frontend.load import Loaded, build, quiet
from planner.ir.plan import Plan
from verify.dynamic.boundaries import Boundaries, Crossing
from verify.dynamic.cases import PROMPT, Inputs, accepts
from verify.dynamic.compare import whole
from verify.dynamic.exact import OutOfPlace, Wide

_REFUSAL = "is a view and is being modified inplace"
State = Mapping[str, torch.Tensor]


@dataclass(slots=True)
class Observed:
    """What a model answered. `values` by name (logits, loss, ...); `gradients` by pass, then by parameter.

    `stage` is the question being asked and `inside` the module that ran, for the report of one that raises.
    """

    values: dict[str, torch.Tensor] = field(default_factory=dict)
    gradients: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    crossings: list[Crossing] = field(default_factory=list)
    stage: str = "loading"
    inside: str = ""
    refused: RuntimeError | None = None
    """Autograd's refusal of an in-place operation of the model, after which the question was asked out of place."""


def reference_model(loaded: Loaded, device: torch.device) -> PreTrainedModel:
    """The twin on one device, in float64, with whatever weights its class initialises (load a state into it)."""
    torch.manual_seed(0)
    own = Loaded(loaded.name, copy.deepcopy(loaded.config), loaded.model_class)
    with quiet():
        model: nn.Module = build(own, device="cpu", dtype=torch.float64).to(device)
    assert isinstance(model, PreTrainedModel)
    return model


def sharded_model(loaded: Loaded, plan: Plan, state: State, *, tp: int) -> PreTrainedModel:
    """The same model on `tp` ranks, by the client's own way: `from_pretrained` with a `DistributedConfig`.

    The plan under test replaces the one the model carries: on the config instance, and on a subclass of the head class.
    Source: transformers 5.23.0, distributed/mixin.py, `init_parallel_plans`.
    """
    planned = with_plan(loaded, plan)
    with quiet():
        model = planned.model_class.from_pretrained(
            None,
            config=planned.config,
            state_dict=dict(state),
            dtype=torch.float64,
            distributed_config=DistributedConfig(tp_size=tp),
        )
    model.eval()
    assert isinstance(model, PreTrainedModel)
    return model


def with_plan(loaded: Loaded, plan: Plan) -> Loaded:
    """The model carrying this plan and no other."""
    head: Mapping[str, object] = {
        "_tp_plan": {entry.pattern: entry.style for entry in plan.head_tp},
        "_pp_plan": {entry.module: (list(entry.inputs), list(entry.outputs)) for entry in plan.head_pp},
        "__module__": loaded.model_class.__module__,
    }
    config = copy.deepcopy(loaded.config)
    for key, value in plan.to_json().items():
        if key.startswith("base_model_"):
            setattr(config, key, value)
    model_class = type(loaded.model_class.__name__, (loaded.model_class,), dict(head))
    return Loaded(loaded.name, config, model_class)


def observe(model: PreTrainedModel, inputs: Inputs, *, into: Observed) -> Observed:
    """Ask everything of one model; what it raises passes through, with `into` saying how far it came."""
    questions: Mapping[str, Callable[[PreTrainedModel, Inputs, Observed], None]] = {
        "forward": _forward,
        "left-padded forward": _padded,
        "cached decode": _decode,
        "backward": _backward_anyway,
        "eager attention": _eager,
    }
    for stage, ask in questions.items():
        into.stage = stage
        boundaries = Boundaries(model)
        try:
            with Wide(), boundaries:
                ask(model, inputs, into)
        finally:
            into.inside = boundaries.inside
            into.crossings = into.crossings or boundaries.crossings
    into.stage = "done"
    return into


def logits(model: nn.Module, ids: torch.Tensor, **more: object) -> torch.Tensor:
    """The model's first output, whole."""
    return whole(model(input_ids=ids, **more)[0])


def _forward(model: PreTrainedModel, inputs: Inputs, into: Observed) -> None:
    with torch.no_grad():
        into.values["logits"] = logits(model, inputs.ids, **_uncached(model))


def _uncached(model: nn.Module) -> dict[str, bool]:
    return {"use_cache": False} if accepts(model, "use_cache") else {}


def _padded(model: PreTrainedModel, inputs: Inputs, into: Observed) -> None:
    """Only positions that hold a token count: what a padded one gives is nobody's concern."""
    if not accepts(model, "attention_mask"):
        return
    with torch.no_grad():
        given = logits(model, inputs.ids, attention_mask=inputs.mask, **_uncached(model))
    into.values["left-padded logits"] = given[inputs.mask.bool()] if given.ndim == 3 else given


def _decode(model: PreTrainedModel, inputs: Inputs, into: Observed) -> None:
    """Prefill, then token by token through the cache; the logits of every step, side by side."""
    if not (accepts(model, "past_key_values") and accepts(model, "use_cache")):
        return
    with torch.no_grad():
        output = model(input_ids=inputs.ids[:, :PROMPT], use_cache=True)
        cache, steps = output.get("past_key_values"), [whole(output[0])]
        if cache is None:
            return
        for position in range(PROMPT, inputs.ids.shape[1]):
            token = inputs.ids[:, position : position + 1]
            output = model(input_ids=token, past_key_values=cache, use_cache=True)
            cache = output.get("past_key_values")
            steps.append(whole(output[0]))
    into.values["decoded logits"] = torch.cat(steps, dim=1)


def _backward_anyway(model: PreTrainedModel, inputs: Inputs, into: Observed) -> None:
    """Backward; where autograd refuses the model's `a += b` on a sharded module's output, again with `a = a + b`."""
    try:
        _backward(model, inputs, into)
    except RuntimeError as error:
        if _REFUSAL not in str(error):
            raise
        into.refused = error
        with OutOfPlace():
            _backward(model, inputs, into)


def _backward(model: PreTrainedModel, inputs: Inputs, into: Observed) -> None:
    """Twice without zeroing: a gradient reduced in place shows only the second time."""
    model.zero_grad(set_to_none=True)
    for once_or_twice in ("gradient", "gradient of two backwards"):
        loss = _loss(model, inputs.ids)
        into.values["loss"] = loss.detach()
        loss.backward()
        into.gradients[once_or_twice] = {name: _gradient(value) for name, value in model.named_parameters()}
    model.zero_grad(set_to_none=True)


def _gradient(parameter: nn.Parameter) -> torch.Tensor:
    if parameter.grad is None:
        return torch.zeros(parameter.shape, dtype=parameter.dtype)
    return whole(parameter.grad.detach()).clone()


def _loss(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """The model's own loss where it has one, else the cross entropy of the next token; a mean square without logits."""
    if accepts(model, "labels"):
        loss = model(input_ids=ids, labels=ids, **_uncached(model)).get("loss")
        if loss is not None:
            return whole(loss)
    given = logits(model, ids, **_uncached(model))
    if given.ndim == 3 and given.shape[-1] > int(ids.max()):
        return nn.functional.cross_entropy(given[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    return given.square().mean()


def _eager(model: PreTrainedModel, inputs: Inputs, into: Observed) -> None:
    """Again with eager attention, which is loud where sdpa is silent; only where the model lets it be chosen."""
    if model.config._attn_implementation != "sdpa":
        return
    with quiet():
        model.set_attn_implementation("eager")
    if model.config._attn_implementation == "eager":
        with torch.no_grad():
            into.values["eager logits"] = logits(model, inputs.ids, **_uncached(model))
