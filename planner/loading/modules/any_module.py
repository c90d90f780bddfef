"""Any `nn.Module` as a model that Transformers can build, load and shard: a class that adopts what its own factory makes.

The factory is a class of modules, or a function that returns one. Its sizes become the fields of a config: those of its config
object (a dataclass, or a class that is made without arguments), else its arguments with defaults.
"""

import dataclasses
import functools
import inspect
import json
import sys
import typing
from collections.abc import Callable, Mapping
from hashlib import sha256
from types import ModuleType
from typing import Any, ClassVar, TypeAlias

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from shardproof.planner.ir.errors import LoadError, reason

Factory: TypeAlias = Callable[..., nn.Module]

_CONFIG_WORDS = ("config", "args", "params", "cfg", "settings", "options", "hparams")


class ModuleConfig(PreTrainedConfig):
    """The sizes of a module of any class, and the inputs of its forward (`NAME: DTYPE[DIMS]`, in order) where they are given."""

    model_type = "module"
    factory: ClassVar[Factory]
    defaults: ClassVar[Mapping[str, Any]] = {}
    options: ClassVar[type | None] = None
    """The class of the config object that the factory takes; None where it takes the sizes themselves."""
    argument: ClassVar[str] = ""
    """The name of the argument that takes the config object."""

    def __init__(self, declared_inputs: tuple[str, ...] = (), **given: Any) -> None:
        for name, value in type(self).defaults.items():
            setattr(self, name, given.pop(name, value))
        self.declared_inputs = list(declared_inputs)
        super().__init__(**given)

    def __getattr__(self, name: str) -> Any:
        # What the module's own config object has beside the fields: a property, a method, a nested object.
        own = vars(self).get("_stands_for")
        if own is None or name.startswith("__"):
            raise AttributeError(name)
        return getattr(own, name)

    def stands_for(self, own: object) -> None:
        """Answer for the config object that the module keeps under the same name."""
        vars(self)["_stands_for"] = own

    def to_dict(self) -> dict[str, Any]:
        """The fields, without the object that they stand for."""
        own = vars(self).pop("_stands_for", None)
        try:
            found: dict[str, Any] = super().to_dict()
        finally:
            if own is not None:
                self.stands_for(own)
        return found

    def own(self, *, tuples: bool = False) -> Any:
        """The factory's own config object, with these fields, lists as tuples where that is asked for."""
        kind = type(self).options
        assert kind is not None
        fields = self._fields(tuples)
        if dataclasses.is_dataclass(kind):
            settable = {field.name for field in dataclasses.fields(kind) if field.init}
            return kind(**{name: value for name, value in fields.items() if name in settable})
        made = kind()
        for name, value in fields.items():
            setattr(made, name, value)
        return made

    def made(self, *, tuples: bool = False) -> nn.Module:
        """What the factory makes of these fields, lists as tuples where that is asked for."""
        if type(self).options is not None:
            return type(self).factory(**{type(self).argument: self.own(tuples=tuples)})
        return type(self).factory(**self._fields(tuples))

    def _fields(self, tuples: bool) -> dict[str, Any]:
        found = {name: getattr(self, name) for name in type(self).defaults}
        return {name: tuple(value) if tuples and isinstance(value, list) else value for name, value in found.items()}


def is_factory(found: object) -> bool:
    """Whether this makes modules: a class of modules that is no Transformers model, or a function."""
    if isinstance(found, type):
        return issubclass(found, nn.Module) and not issubclass(found, PreTrainedModel)
    return inspect.isfunction(found)


def adopting(factory: Factory, *, where: str, package: str, name: str = "") -> type[PreTrainedModel]:
    """A model class whose models are what the factory makes, under the same names of modules and parameters.

    Args:
        factory: a class of modules, or a function.
        where: the reference, for messages.
        package: the prefix of the names of modules that no import finds; the class is kept in one, so that it pickles.
        name: of the class; by default that of the factory.

    Raises:
        LoadError: the factory raises, or makes no module.
    """
    digest = sha256(f"{where} {factory.__module__} {factory.__qualname__}".encode()).hexdigest()[:12]
    module_name = f"{package}adopted_{digest}"
    name = name or factory.__name__
    config_class = _config_class(factory, f"{name}Config", module_name, where=where)
    kind = factory if isinstance(factory, type) else type(_tried(config_class, where=where))
    adopted = _adopting(kind, config_class, name, module_name)
    home = ModuleType(module_name)
    vars(home).update({config_class.__name__: config_class, name: adopted})
    sys.modules[module_name] = home
    return adopted


def _config_class(factory: Factory, name: str, module_name: str, *, where: str) -> type[ModuleConfig]:
    argument, options = _options(factory)
    defaults = _fields(options, where=where) if options is not None else _defaults(factory)
    body = {
        "factory": staticmethod(factory),
        "defaults": defaults,
        "options": options,
        "argument": argument,
        "__init__": ModuleConfig.__init__,  # else the base class generates one from annotations
        "__module__": module_name,
    }
    made: type[ModuleConfig] = type(name, (ModuleConfig,), body)
    return made


def _options(factory: Factory) -> tuple[str, type | None]:
    """The argument that takes a config object, and its class; without an annotation, the only such class beside the factory."""
    arguments = list(_arguments(factory).values())
    hints = _hints(factory)
    for argument in arguments:
        kind = hints.get(argument.name)
        if isinstance(kind, type) and _is_options(kind):
            return argument.name, kind
    if arguments and arguments[0].default is inspect.Parameter.empty and _names_options(arguments[0].name):
        home = vars(sys.modules[factory.__module__]) if factory.__module__ in sys.modules else {}
        beside = [one for one in home.values() if isinstance(one, type) and _is_options(one)]
        if len(beside) == 1:
            return arguments[0].name, beside[0]
    return "", None


def _arguments(factory: Factory) -> dict[str, inspect.Parameter]:
    try:
        found = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return {}
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name: one for name, one in found.items() if one.kind not in several}


def _hints(factory: Factory) -> Mapping[str, object]:
    function: Any = vars(factory).get("__init__", factory) if isinstance(factory, type) else factory
    try:
        return typing.get_type_hints(function)
    except Exception:  # an annotation that names nothing
        return {}


def _names_options(name: str) -> bool:
    return any(word in name.lower() for word in _CONFIG_WORDS)


def _is_options(kind: type) -> bool:
    """A class that only holds sizes: a dataclass, or one named so that is made without arguments."""
    if issubclass(kind, nn.Module | PreTrainedConfig) or kind.__module__ == "builtins":
        return False
    return dataclasses.is_dataclass(kind) or _names_options(kind.__name__)


def _fields(options: type, *, where: str) -> dict[str, Any]:
    if dataclasses.is_dataclass(options):
        lacking = [
            field.name
            for field in dataclasses.fields(options)
            if field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        ]
        if lacking:
            return _plain({field.name: _value(field) for field in dataclasses.fields(options) if field.init})
    try:
        made = options()
    except Exception as error:
        raise LoadError(
            f"{where}: {options.__name__} is not made without arguments ({reason(error)}); give a function that makes "
            "the module, as in file.py:function."
        ) from error
    return _plain(vars(made))


def _value(field: "dataclasses.Field[Any]") -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else None


def _defaults(factory: Factory) -> dict[str, Any]:
    """Arguments with defaults; those without one are None, and have to be set."""
    empty = inspect.Parameter.empty
    return _plain({name: None if one.default is empty else one.default for name, one in _arguments(factory).items()})


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a config can hold: public names, and values that are JSON."""
    return {name: value for name, value in fields.items() if not name.startswith("_") and _is_json(value)}


def _is_json(value: object) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _tried(config_class: type[ModuleConfig], *, where: str) -> nn.Module:
    try:
        with torch.device("meta"):
            made = _made(config_class())
    except Exception as error:
        unset = [name for name, value in config_class.defaults.items() if value is None]
        advice = f" Give values with --set: {', '.join(unset[:4])}." if unset else ""
        raise LoadError(f"{where} raises {reason(error)} when it makes the module.{advice}") from error
    if not isinstance(made, nn.Module):
        raise LoadError(
            f"{where} makes {type(made).__name__}, and no nn.Module; give a function that returns the module."
        )
    return made


def _made(config: ModuleConfig) -> Any:
    """What the factory makes on the meta device, or on the CPU where its constructor reads numbers off tensors."""
    try:
        return _of_fields(config)
    except (NotImplementedError, RuntimeError) as error:
        if "meta" not in str(error) or not torch.empty(()).is_meta:
            raise
        with torch.device("cpu"):
            return _of_fields(config)


def _of_fields(config: ModuleConfig) -> Any:
    """What the factory makes; where it refuses lists, which are what JSON has, of tuples."""
    try:
        return config.made()
    except Exception:
        if not any(isinstance(getattr(config, name), list) for name in type(config).defaults):
            raise
        return config.made(tuples=True)


MAKEABLE = 2**27
"""The most parameters of a module that is made on the CPU for the tables that it keeps as plain attributes."""


def _with_tables(inner: nn.Module, config: ModuleConfig) -> nn.Module:
    """The module with real numbers in tensors that are neither parameters nor buffers: nobody loads those."""
    owners = [
        (path, name)
        for path, part in inner.named_modules()
        for name, value in vars(part).items()
        if isinstance(value, torch.Tensor) and value.is_meta
    ]
    if not owners or sum(parameter.numel() for parameter in inner.parameters()) > MAKEABLE:
        return inner
    with torch.device("cpu"):
        real = _of_fields(config)
    for path, name in owners:
        value = getattr(real.get_submodule(path), name, None)
        if isinstance(value, torch.Tensor) and not value.is_meta:
            setattr(inner.get_submodule(path), name, value.detach())
    return inner


class _Unmade(nn.Module):
    """Stands before the adopted class, whose constructor the factory calls, in the order of constructors."""

    def __init__(self) -> None:
        nn.Module.__init__(self)


def _adopting(
    kind: type[nn.Module], config_class: type[ModuleConfig], name: str, module_name: str
) -> type[PreTrainedModel]:
    def construct(self: Any, config: ModuleConfig) -> None:
        PreTrainedModel.__init__(self, config)
        inner = _made(config)
        if torch.empty(()).is_meta:  # whatever device the factory chose
            inner = _with_tables(inner.to("meta"), config)
        own = getattr(inner, "config", None)  # an attribute, or a property of the class
        if own is not None and not isinstance(own, PreTrainedConfig | nn.Module):
            config.stands_for(own)
        kept = {"config": config, "training": self.training}
        vars(self).update(vars(inner))
        vars(self).update(kept)
        self._tied_weights_keys = _untied(self)
        config.tie_word_embeddings = bool(self._tied_weights_keys)
        self.post_init()

    @functools.wraps(kind.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = kind.forward(self, *args, **nested(kwargs))
        if type(given) is dict:  # numbered too, as a Transformers output is
            return ModelOutput({str(name): value for name, value in given.items() if value is not None})
        return (given,) if isinstance(given, torch.Tensor) else given

    def get_input_embeddings(self: Any) -> nn.Module:
        found = next((module for module in self.modules() if isinstance(module, nn.Embedding)), None)
        if found is None:
            raise NotImplementedError("this module has no table of tokens")
        return found

    body = {
        "__init__": construct,
        "forward": forward,
        "get_input_embeddings": get_input_embeddings,
        "config_class": config_class,
        "base_model_prefix": "",
        "config": None,  # where the adopted class has a property of this name, which nobody can set
        "_tp_plan": None,  # that of the adopted class is not Transformers' own
        "own_tp_plan": getattr(kind, "_tp_plan", None),
        "__module__": module_name,
        "__doc__": kind.__doc__,
        "_supports_attention_backend": False,
    }
    # A class that is a Transformers model already stands before that in the order of constructors.
    bases = (_Unmade, kind) if issubclass(kind, PreTrainedModel) else (PreTrainedModel, _Unmade, kind)
    made: type[PreTrainedModel] = type(name, bases, body)
    return made


def nested(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments with `name.key` put together: lists where the keys count from 0, else dicts."""
    found: dict[str, Any] = {name: value for name, value in arguments.items() if "." not in name}
    parts: dict[str, dict[str, Any]] = {}
    for name, value in arguments.items():
        if "." in name:
            owner, _, key = name.partition(".")
            parts.setdefault(owner, {})[key] = value
    for owner, inner in parts.items():
        given = nested(inner)
        numbered = list(given) == [str(at) for at in range(len(given))]
        found[owner] = list(given.values()) if numbered else {**(found.get(owner) or {}), **given}
    return found


def _untied(module: nn.Module) -> dict[str, str]:
    """Parameters with two names: the later one, which gets a parameter of its own here, and the first.

    Transformers ties them itself, after it has loaded and sharded the model (5.23.0, modeling_utils.py, `tie_weights`).
    """
    first: dict[int, str] = {}
    found = {}
    for name, value in list(module.named_parameters(remove_duplicate=False)):
        if id(value) not in first:
            first[id(value)] = name
            continue
        found[name] = first[id(value)]
        owner, _, local = name.rpartition(".")
        own = nn.Parameter(torch.empty_like(value), requires_grad=value.requires_grad)
        setattr(module.get_submodule(owner), local, own)
    return found
