"""BE421 to BE423: config.json, custom code, and plan attributes in the right place.

Source: `vllm/model_executor/models/registry.py` (`_try_resolve_transformers`), 0.32.0: `auto_map` must name `AutoModel`, and
`AutoConfig` where Transformers lacks the type; `transformers/distributed/mixin.py` (`init_parallel_plans`), 5.23.0:
`base_model_tp_plan` and `base_model_pp_plan` are read from the config of the base model, `_tp_plan` and `_pp_plan` from the
head class.
"""

import ast
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from transformers import CONFIG_MAPPING, MODEL_MAPPING, PreTrainedConfig, PreTrainedModel

from shardproof.planner.ir.findings import Finding, Place
from shardproof.verify.clients.contract.source import source_of
from shardproof.verify.findings import be421, be422, be423

CONFIG_PLANS = ("base_model_tp_plan", "base_model_pp_plan", "base_model_ep_plan")
CLASS_PLANS = ("_tp_plan", "_pp_plan", "_ep_plan")


def check_folder(folder: Path) -> list[Finding]:
    """What an engine reads of a checkpoint folder before any class is loaded."""
    file = folder / "config.json"
    try:
        fields = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        return [be421.unreadable(type(error).__name__)]
    if not isinstance(fields, dict):
        return [be421.no_object()]
    return [*_fields(fields), *_auto_map(folder, fields)]


def _fields(fields: Mapping[str, object]) -> Iterator[Finding]:
    if not isinstance(fields.get("model_type"), str):
        yield be421.lacks("model_type", '"model_type": "..."')
    names = fields.get("architectures")
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        yield be421.lacks("architectures", '"architectures": ["...ForCausalLM"]')


def _auto_map(folder: Path, fields: Mapping[str, object]) -> Iterator[Finding]:
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
    for key, reference in auto_map.items():
        for one in reference if isinstance(reference, list) else [reference]:
            if isinstance(one, str) and "--" not in one and (problem := _missing(folder, one)) is not None:
                yield be422.auto_map_names(key, one, problem)


def _missing(folder: Path, reference: str) -> str | None:
    module, _, name = reference.rpartition(".")
    file = folder / f"{module.replace('.', '/')}.py"
    if not module or not file.is_file():
        return f"there is no {file.name}"
    try:
        tree = ast.parse(file.read_text())
    except (SyntaxError, UnicodeDecodeError) as error:
        return f"{file.name} is no Python ({type(error).__name__})"
    defined = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    imported = {a.asname or a.name for node in tree.body if isinstance(node, ast.ImportFrom) for a in node.names}
    return None if name in defined | imported else f"{file.name} has no class {name}"


def check_base_class(config: PreTrainedConfig, client: str) -> list[Finding]:
    """Engines make the base model by `AutoModel`, which has to know the class of Transformers' own configs."""
    kind = type(config)
    if not kind.__module__.startswith("transformers.") or kind in MODEL_MAPPING:
        return []
    return [be421.no_base_model(kind.__name__, Place(source=source_of(kind)), client)]


def check_places(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> list[Finding]:
    """Plans on a class that is never asked for them, and plans of another form."""
    found = []
    for name in CONFIG_PLANS:
        if name in _own_names(model_class):
            found.append(_misplaced(model_class, name, f"class attribute of {type(config).__name__}"))
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


def _own_names(kind: type) -> set[str]:
    """What a class says itself, or inherits from a class that is not Transformers' own base."""
    bases = (PreTrainedModel, PreTrainedConfig, *PreTrainedModel.__mro__, *PreTrainedConfig.__mro__)
    return {name for base in kind.__mro__ if base not in bases for name, value in vars(base).items() if value}


def _misplaced(kind: type, name: str, needed: str) -> Finding:
    return be423.attribute_misplaced(kind.__name__, name, Place(source=source_of(kind)), needed)
