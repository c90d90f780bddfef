"""A model class whose models have adapters: the class's own constructor runs, then PEFT puts each adapter's layers in."""

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from shardproof.planner.ir.errors import LoadError

Fields = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Adapter:
    """One adapter: its name in PEFT, the fields of its `adapter_config.json` as JSON, and the folder of its weights, if any."""

    name: str
    fields: str
    folder: str = ""

    @classmethod
    def of(cls, name: str, fields: Fields, *, folder: str = "") -> "Adapter":
        """The adapter with these fields; sets become sorted lists."""
        return cls(name, json.dumps(dict(fields), default=_as_json, sort_keys=True), folder)

    def as_mapping(self) -> dict[str, Any]:
        """The fields of its config."""
        found = json.loads(self.fields)
        assert isinstance(found, dict)
        return found


def _as_json(value: object) -> object:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def peft() -> ModuleType:
    """The package PEFT.

    Raises:
        LoadError: it is not installed.
    """
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise LoadError(
            f"An adapter needs the package peft, which cannot be imported ({error}); install it."
        ) from error


_MADE: dict[tuple[type[PreTrainedModel], tuple[Adapter, ...]], type[PreTrainedModel]] = {}


def adapted_class(kind: type[PreTrainedModel], adapters: tuple[Adapter, ...]) -> type[PreTrainedModel]:
    """The class with these adapters. All of them are active, and their parameters alone are trained, as PEFT trains them.

    Its attribute `adapted` is the class without them.
    """

    if (kind, adapters) not in _MADE:
        _MADE[kind, adapters] = _made(kind, adapters)
    return _MADE[kind, adapters]


def _made(kind: type[PreTrainedModel], adapters: tuple[Adapter, ...]) -> type[PreTrainedModel]:
    def construct(self: PreTrainedModel, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        kind.__init__(self, config, *args, **kwargs)
        inject(self, adapters)

    body = {"__init__": construct, "__module__": kind.__module__, "__doc__": kind.__doc__, "adapted": kind}
    return type(kind.__name__, (kind,), body)


def inject(model: PreTrainedModel, adapters: Sequence[Adapter]) -> None:
    """Put the layers of adapters into a model, in place, and make all of them active.

    Raises:
        ValueError: PEFT cannot put one of them into this model.
    """
    library = peft()
    for adapter in adapters:
        config = library.PeftConfig.from_peft_type(**_fitting(adapter.as_mapping(), model.config))
        library.inject_adapter_in_model(config, model, adapter_name=adapter.name)
    names = [adapter.name for adapter in adapters]
    for module in adapter_layers(model):
        module.set_adapter([name for name in names if name in held_by(module)])
    wrapper = importlib.import_module("peft.utils.other").ModulesToSaveWrapper
    for module in model.modules():
        if isinstance(module, wrapper):  # trained whole by one adapter, and put off by the injection of the next
            module.set_adapter([name for name in names if name in vars(module)["_modules"]["modules_to_save"]])


def adapter_layers(model: nn.Module) -> list[Any]:
    """The modules of a model that PEFT put around a base layer."""
    kind = importlib.import_module("peft.tuners.tuners_utils").BaseTunerLayer
    return [module for module in model.modules() if isinstance(module, kind)]


def held_by(layer: Any) -> set[str]:
    """The names of the adapters that an adapter layer has parameters of."""
    return {name for attribute in layer.adapter_layer_names for name in getattr(layer, attribute)}


def _fitting(fields: Fields, config: PreTrainedConfig) -> dict[str, Any]:
    """The fields for a model of this config: its adapters are trained, and a twin with fewer layers has those that are left."""
    layers, count = fields.get("layers_to_transform"), config.get_text_config().num_hidden_layers
    if isinstance(layers, Sequence):
        layers = [layer for layer in layers if layer < count] or None
    return {**fields, "inference_mode": False} | ({"layers_to_transform": layers} if layers else {})


def without_dropout(adapter: Adapter) -> Adapter:
    """The adapter for a twin, whose ranks are compared with one device."""
    fields = adapter.as_mapping()
    return Adapter.of(adapter.name, fields | {"lora_dropout": 0.0}) if "lora_dropout" in fields else adapter
