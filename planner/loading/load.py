"""Load a model: what it was referred to by, its config and its class, and how other processes get the same one."""

import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from shardproof.planner.ir.errors import ArgumentError, LoadError
from shardproof.planner.loading.adapters.adapted_class import Adapter, adapted_class
from shardproof.planner.loading.configs.config_fields import impossible
from shardproof.planner.loading.custom_code import FILE_PACKAGE, config_class_of
from shardproof.planner.loading.implementations import NOTHING_ASKED, Implementations
from shardproof.planner.loading.modules.any_module import ModuleConfig, adopting
from shardproof.planner.loading.modules.declared_inputs import as_texts, declared
from shardproof.planner.loading.quiet import quiet
from shardproof.planner.loading.resolve import resolve


@dataclass(frozen=True)
class LoadedModel:
    """A model that can be built: the reference as given, its config, the class with the head, its checkpoint folder.

    `load(name, overrides=dict(overrides), trust_remote_code=trust_remote_code)` gives an equal one in another process, but for
    adapters and the implementations that were asked for.
    """

    name: str
    config: PreTrainedConfig
    model_class: type[PreTrainedModel]
    checkpoint: Path | None = None
    overrides: tuple[tuple[str, str], ...] = ()
    trust_remote_code: bool = False
    adapters: tuple[Adapter, ...] = ()
    asked: Implementations = NOTHING_ASKED

    @property
    def title(self) -> str:
        """The name for reports: only the last part of a path, since reports contain no absolute paths."""
        return Path(self.name).name if Path(self.name).is_absolute() else self.name

    @property
    def is_module(self) -> bool:
        """Whether this is a module of any class, which Transformers does not know, and no config of which carries a plan."""
        return isinstance(self.config, ModuleConfig)

    @property
    def base_class(self) -> type[PreTrainedModel]:
        """The model class without adapters."""
        found: type[PreTrainedModel] = getattr(self.model_class, "adapted", self.model_class)
        return found

    def __reduce__(self) -> tuple[Callable[..., "LoadedModel"], tuple[object, ...]]:
        """Pickle the reference. A class from a file given by path has no importable module, so unpickling loads it again.

        Raises:
            PicklingError: the module was made in memory, and nothing can load it again.
        """
        if self.adapters:
            return with_adapter_classes, (replace(self, model_class=self.base_class, adapters=()), self.adapters)
        if self.name in _IN_MEMORY:
            raise pickle.PicklingError("it was made in memory: give file.py:function, which makes it")
        known = (self.name, self.config, self.model_class, self.checkpoint, self.overrides, self.trust_remote_code)
        fields = (*known, (), self.asked)
        again = self.model_class.__module__.startswith(FILE_PACKAGE)
        return _unpickled, (self.name, self.overrides if again else None, pickle.dumps(fields))


def load(
    reference: str | nn.Module,
    *,
    overrides: Mapping[str, object] | None = None,
    trust_remote_code: bool = False,
    inputs: Sequence[str] | Mapping[str, Tensor | str] = (),
    adapters: Sequence[str] = (),
    attention: str | None = None,
    experts: str | None = None,
) -> LoadedModel:
    """Resolve a reference, without the network.

    A path takes precedence over a model type of the same name only if it contains a slash, or a config.json is in it.

    Args:
        reference: a model type, a config.json, a checkpoint folder, a GGUF file, a Hub id, a class, a function that makes a
            module, or a module itself (which other processes cannot load: it is proved, and not run).
        overrides: fields of the config. A string is parsed as JSON if it is valid JSON; any other value is used as it is.
        trust_remote_code: whether code next to a config.json may run.
        inputs: what the forward of a module that is no Transformers model is given, as `NAME: DTYPE[DIMS]`, or by name
            as tensors, which stand for their dtypes and shapes; without them, they are guessed from its first layers.
        adapters: folders of adapters that PEFT saved, which are put into the model.
        attention: the attention implementation that the model runs with, instead of what the config names.
        experts: the same for experts.

    Raises:
        ArgumentError: an input is not of its form, or is given for a Transformers model; or an implementation is not registered.
        LoadError: the reference names no model, an override names no field, an adapter does not fit, or Transformers refuses an
            implementation for this model.
    """
    from shardproof.planner.loading.adapters.adapter_folders import of_peft_model, with_adapters  # they load
    from shardproof.planner.loading.chosen_implementations import with_implementations  # it builds

    asked = Implementations(attention, experts)
    if isinstance(reference, nn.Module):
        found = with_adapters(of_peft_model(reference) or _of_module(reference, inputs), adapters)
        return with_implementations(found, asked)
    given = {key: _as_written(key, value) for key, value in (overrides or {}).items()}
    asked = replace(asked, attention=attention or _named_attention(given))
    with quiet():
        config, model_class, checkpoint = resolve(reference, given, trust_remote_code)
    if refused := next(impossible(config), None):
        raise LoadError(f"{reference}: {refused}; correct it in the config or with --set.")
    _declare(config, inputs, name=reference)
    loaded = LoadedModel(reference, config, model_class, checkpoint, tuple(given.items()), trust_remote_code)
    return with_implementations(with_adapters(loaded, adapters), asked)


_IN_MEMORY: set[str] = set()
"""The names of modules that were given to `load` themselves."""


def _of_module(module: nn.Module, inputs: Sequence[str] | Mapping[str, Tensor | str]) -> LoadedModel:
    """A module that was made already: a copy of it is what every build gives."""
    name = type(module).__name__

    def copied() -> nn.Module:
        return deepcopy(module)

    model_class = adopting(copied, where=f"{name} {id(module):x}", package=FILE_PACKAGE, name=name)
    _IN_MEMORY.add(name)
    config = config_class_of(model_class)()
    _declare(config, inputs, name=name)
    return LoadedModel(name, config, model_class)


def _declare(config: PreTrainedConfig, inputs: Sequence[str] | Mapping[str, Tensor | str], *, name: str) -> None:
    if not inputs:
        return
    if not isinstance(config, ModuleConfig):
        raise ArgumentError(f"{name} is a Transformers model, whose inputs are known: leave --input out.")
    texts = as_texts(inputs)
    declared(texts, config, rows=1, length=1)
    config.declared_inputs = texts


def _named_attention(overrides: Mapping[str, str]) -> str | None:
    """What `--set attn_implementation=NAME` asks for."""
    named = overrides.get("attn_implementation")
    return named if isinstance(named, str) and named.isidentifier() and named != "null" else None


def _as_written(key: str, value: object) -> str:
    """A value in the form of `--set`: a string unchanged, any other value as JSON."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:
        raise LoadError(
            f"the override {key} holds {type(value).__name__}, which no config.json can; give JSON."
        ) from error


def with_adapter_classes(loaded: LoadedModel, adapters: tuple[Adapter, ...]) -> LoadedModel:
    """The model with these adapters instead of those that it has; nothing is checked."""
    return replace(loaded, model_class=adapted_class(loaded.base_class, adapters), adapters=adapters)


def _unpickled(reference: str, overrides: tuple[tuple[str, str], ...] | None, fields: bytes) -> LoadedModel:
    if overrides is not None:
        load(reference, overrides=dict(overrides))
    return LoadedModel(*pickle.loads(fields))
