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

from shardproof.planner.ir.findings import Fault, Finding, Place, Severity, Source
from shardproof.verify.clients.contract.source import source_of

CONFIG_PLANS = ("base_model_tp_plan", "base_model_pp_plan", "base_model_ep_plan")
CLASS_PLANS = ("_tp_plan", "_pp_plan", "_ep_plan")


def check_folder(folder: Path) -> list[Finding]:
    """What an engine reads of a checkpoint folder before any class is loaded."""
    file = folder / "config.json"
    try:
        fields = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        return [_file("BE421", f"config.json cannot be read ({type(error).__name__})", "a config.json", "config.json")]
    if not isinstance(fields, dict):
        return [_file("BE421", "config.json holds no object", "one JSON object", "config.json")]
    return [*_fields(fields), *_auto_map(folder, fields)]


def _fields(fields: Mapping[str, object]) -> Iterator[Finding]:
    if not isinstance(fields.get("model_type"), str):
        yield _file("BE421", "config.json has no model_type", '"model_type": "..."', "config.json")
    names = fields.get("architectures")
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        yield _file("BE421", "config.json has no architectures", '"architectures": ["...ForCausalLM"]', "config.json")


def _auto_map(folder: Path, fields: Mapping[str, object]) -> Iterator[Finding]:
    auto_map = fields.get("auto_map")
    known = fields.get("model_type") in CONFIG_MAPPING
    if not isinstance(auto_map, Mapping):
        if not known and "model_type" in fields:
            needed = '"auto_map": {"AutoConfig": ..., "AutoModel": ..., "AutoModelForCausalLM": ...}'
            yield _file(
                "BE422",
                f"Transformers has no type {fields['model_type']!r}, and there is no auto_map",
                needed,
                "config.json",
            )
        return
    wanted = ("AutoModel",) if known else ("AutoConfig", "AutoModel")
    for key in wanted:
        if key not in auto_map:
            yield _file(
                "BE422",
                f"auto_map has no {key}, by which engines make the base model",
                f'"{key}": "file.Class"',
                "config.json",
            )
    for key, reference in auto_map.items():
        for one in reference if isinstance(reference, list) else [reference]:
            if isinstance(one, str) and "--" not in one and (problem := _missing(folder, one)) is not None:
                yield _file(
                    "BE422",
                    f"auto_map's {key} names {one}, and {problem}",
                    "a file and a class that are there",
                    "config.json",
                )


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
    return [
        Finding(
            "BE421",
            Severity.ERROR,
            f"AutoModel knows no model of {kind.__name__}, so that {client} cannot make it.",
            Place(source=source_of(kind)),
            why="an engine makes the base model by AutoModel.from_config(config)",
            found=f"{kind.__name__} is not in MODEL_MAPPING",
            needed="the config of a whole model that AutoModel knows",
            fault=Fault.MODEL,
        )
    ]


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
    return Finding(
        "BE423",
        Severity.ERROR,
        f"{kind.__name__} has {name}, which is never read there.",
        Place(source=source_of(kind)),
        why="a config gives the plan of its base model, a head class the plan of the head",
        found=f"{name} on {kind.__name__}",
        needed=needed,
        fault=Fault.MODEL,
    )


def _file(code: str, problem: str, needed: str, file: str) -> Finding:
    return Finding(
        code,
        Severity.ERROR,
        f"{problem}.",
        Place(source=Source(file, 1)),
        why="an engine finds the classes by this file alone",
        found=problem,
        needed=needed,
        fault=Fault.MODEL,
    )
