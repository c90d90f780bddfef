"""BE421 to BE423: config.json, custom code, and plan attributes in the right place.

Source: `vllm/model_executor/models/registry.py` (`_try_resolve_transformers`), 0.32.0: `auto_map` must name `AutoModel`, and
`AutoConfig` where Transformers lacks the type; `transformers/distributed/mixin.py` (`init_parallel_plans`), 5.23.0:
`base_model_tp_plan` and `base_model_pp_plan` are read from the config of the base model, `_tp_plan` and `_pp_plan` from the
head class.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.processing_utils import ProcessorMixin

from shardproof.planner.ir.errors import LoadError
from shardproof.planner.ir.findings import Finding, Place
from shardproof.planner.loading.custom_code import class_from_checkpoint
from shardproof.planner.loading.load import LoadedModel
from shardproof.planner.loading.quiet import quiet
from shardproof.verify.clients.contract.source import source_of
from shardproof.verify.findings import be421, be422, be423

CONFIG_PLANS = ("base_model_tp_plan", "base_model_pp_plan", "base_model_ep_plan")
CLASS_PLANS = ("_tp_plan", "_pp_plan", "_ep_plan")


def check_folder(folder: Path, *, trusted: bool = False) -> list[Finding]:
    """What an engine reads of a checkpoint folder before it makes the model.

    The code beside config.json is loaded only if it is `trusted`; else only its files are looked for.
    """
    file = folder / "config.json"
    try:
        fields = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        return [be421.unreadable(type(error).__name__)]
    if not isinstance(fields, dict):
        return [be421.no_object()]
    return [*_fields(fields), *_auto_map(folder, fields, trusted)]


def _fields(fields: Mapping[str, object]) -> Iterator[Finding]:
    if not isinstance(fields.get("model_type"), str):
        yield be421.lacks("model_type", '"model_type": "..."')
    names = fields.get("architectures")
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        yield be421.lacks("architectures", '"architectures": ["...ForCausalLM"]')


def _auto_map(folder: Path, fields: Mapping[str, object], trusted: bool) -> Iterator[Finding]:
    auto_map = fields.get("auto_map")
    known = fields.get("model_type") in CONFIG_MAPPING
    if not isinstance(auto_map, Mapping):
        if not known and "model_type" in fields:
            yield be422.no_auto_map(fields["model_type"])
        return
    wanted = ("AutoModel",) if known else ("AutoConfig", "AutoModel")
    for key in wanted:
        if key not in auto_map:
            yield be422.auto_map_lacks(key)
    classes: dict[str, type] = {}
    for key, reference in auto_map.items():
        for one in reference if isinstance(reference, list) else [reference]:
            if isinstance(one, str) and "--" not in one:
                problem = _problem(folder, key, one, classes) if trusted else _no_file(folder, one)
                if problem is not None:
                    yield be422.auto_map_names(key, one, problem)
    yield from _pair(auto_map, classes)


def _problem(folder: Path, key: str, reference: str, classes: dict[str, type]) -> str | None:
    """What is wrong with a class that `auto_map` names, loaded as the client loads it; a right one is put in `classes`."""
    if (problem := _no_file(folder, reference)) is not None:
        return problem
    try:
        with quiet():
            found: object = class_from_checkpoint(reference, str(folder))
    except LoadError as error:
        return str(error).partition(": ")[2] or str(error)
    wanted = _kind_of(key)
    if not isinstance(found, type):
        return f"it is no class but a {type(found).__name__}"
    if wanted is not None and not issubclass(found, wanted):
        return f"{found.__name__} is no {wanted.__name__}"
    classes[key] = found
    return None


def _no_file(folder: Path, reference: str) -> str | None:
    module = reference.rpartition(".")[0]
    file = folder / f"{module.replace('.', '/')}.py"
    return None if module and file.is_file() else f"there is no {file.name}"


def _kind_of(key: str) -> type | None:
    """What a class under a key of `auto_map` has to be."""
    if key == "AutoConfig":
        return PreTrainedConfig
    if key.startswith("AutoModel"):
        return PreTrainedModel
    return ProcessorMixin if key == "AutoProcessor" else None


def _pair(auto_map: Mapping[str, object], classes: Mapping[str, type]) -> Iterator[Finding]:
    """Model classes whose `config_class` is another one: `AutoModel.register` refuses them (`auto_factory.py`, 5.23.0)."""
    config = classes.get("AutoConfig")
    for key, kind in classes.items():
        own = getattr(kind, "config_class", None) if key.startswith("AutoModel") else None
        if config is not None and isinstance(own, type) and own.__name__ != config.__name__:
            yield be422.auto_map_names(
                key, str(auto_map[key]), f"its config_class is {own.__name__}, not {config.__name__}"
            )


def base_class(loaded: LoadedModel, base: nn.Module) -> type:
    """The class that `AutoModel` makes: the one that `auto_map` names, else that of the base model."""
    auto_map = getattr(loaded.config, "auto_map", None) or {}
    reference = auto_map.get("AutoModel") if isinstance(auto_map, Mapping) else None
    if isinstance(reference, str) and loaded.checkpoint is not None and loaded.trust_remote_code:
        try:
            found = class_from_checkpoint(reference, str(loaded.checkpoint))
        except LoadError:  # a finding of its own
            return type(base)
        return found if isinstance(found, type) and issubclass(found, PreTrainedModel) else type(base)
    return type(base)


def check_made_class(loaded: LoadedModel, base: nn.Module) -> list[Finding]:
    """BE422: `AutoModel` names a class with a head, so that an engine takes logits for hidden states."""
    kind = base_class(loaded, base)
    auto_map = getattr(loaded.config, "auto_map", None) or {}
    if "AutoModelForCausalLM" in auto_map and kind is type(base) is loaded.model_class and _headless(base):
        reference = str(auto_map["AutoModelForCausalLM"])
        return [be422.auto_map_names("AutoModelForCausalLM", reference, f"{kind.__name__} has no head")]
    if kind is type(base) or not issubclass(kind, PreTrainedModel):
        return []
    try:
        with quiet(), torch.device("meta"):
            made = kind._from_config(loaded.config)
        headed = made.get_output_embeddings() is not None
    except Exception:  # a class that does not build, or has no such method: nothing is known of it
        return []
    problem = f"{kind.__name__} has a head: it returns logits" if headed else _other_model(made, base)
    return [be422.auto_map_names("AutoModel", str(loaded.config.auto_map["AutoModel"]), problem)] if problem else []


def _other_model(made: nn.Module, base: nn.Module) -> str:
    """A parameter of the base model that the class of `AutoModel` does not have by that name, in words; empty for none, and
    for a class of which the base model has a module.
    """
    if any(type(module) is type(made) for module in base.modules()):
        return ""
    held = {name for name, _ in made.named_parameters()}
    lacking = next((name for name, _ in base.named_parameters() if name not in held), None)
    if lacking is None:
        return ""
    return f"{type(made).__name__} has no {lacking}: it is another model than {type(base).__name__}"


def _headless(model: nn.Module) -> bool:
    """Whether a model has no output layer: its `get_output_embeddings` says so."""
    return isinstance(model, PreTrainedModel) and model.get_output_embeddings() is None


def check_base_class(config: PreTrainedConfig, client: str) -> list[Finding]:
    """Engines make the base model by `AutoModel`, which has to know the class of Transformers' own configs."""
    kind = type(config)
    if not kind.__module__.startswith("transformers.") or kind in MODEL_MAPPING:
        return []
    return [be421.no_base_model(kind.__name__, Place(source=source_of(kind)), client)]


def check_places(model_class: type[PreTrainedModel], base: type, config: PreTrainedConfig) -> list[Finding]:
    """Plans on a class that is never asked for them, and plans of another form; `base` is the class of the base model."""
    found = []
    for kind in dict.fromkeys((model_class, base)):
        for name in CONFIG_PLANS:
            if name in _own_names(kind):
                found.append(_misplaced(kind, name, f"class attribute of {type(config).__name__}"))
    for name in CLASS_PLANS:
        if name in _own_names(type(config)):
            found.append(_misplaced(type(config), name, f"class attribute of {model_class.__name__}"))
    text = config.get_text_config()
    if text is not config:
        for name in CONFIG_PLANS[:2]:
            if name in _own_names(type(config)) and not getattr(text, name, None):
                found.append(
                    _misplaced(
                        type(config),
                        name,
                        f"class attribute of {type(text).__name__}, the config of the language model",
                    )
                )
    return found


def check_parts(config: PreTrainedConfig) -> list[Finding]:
    """Configs inside of a custom config that `sub_configs` does not name.

    Transformers sets the attention and the dtype of the parts by it (`configuration_utils.py`, `modeling_utils.py`, 5.23.0).
    """
    kind = type(config)
    if kind.__module__.startswith("transformers."):
        return []
    parts = {name for name, value in vars(config).items() if isinstance(value, PreTrainedConfig)}
    lost = sorted(parts - set(kind.sub_configs))
    return [be421.part_not_declared(kind.__name__, name, Place(source=source_of(kind))) for name in lost]


def _own_names(kind: type) -> set[str]:
    """What a class says itself, or inherits from a class that is not Transformers' own base."""
    bases = (PreTrainedModel, PreTrainedConfig, *PreTrainedModel.__mro__, *PreTrainedConfig.__mro__)
    return {name for base in kind.__mro__ if base not in bases for name, value in vars(base).items() if value}


def _misplaced(kind: type, name: str, needed: str) -> Finding:
    return be423.attribute_misplaced(kind.__name__, name, Place(source=source_of(kind)), needed)
