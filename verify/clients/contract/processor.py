"""BE441 to BE444: processors of multimodal models, by use.

Source: `vllm/model_executor/models/transformers/multimodal.py`. 0.25.0 splits the tokens of type 1 by the counts of
`_get_num_multimodal_tokens`, so that a count holds every token of an image's run, its row and end tokens too. 0.32.0 finds the
images by `text_replacement_offsets` and uses the counts for the largest image. `transformers/processing_utils.py`, 5.23.0
(`MultiModalData`).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import transformers
from transformers import AutoProcessor, PreTrainedConfig
from transformers.processing_utils import ProcessorMixin
from transformers.utils.import_utils import is_vision_available

from shardproof.planner.ir.findings import Finding, Place, Source
from shardproof.planner.loading.custom_code import class_from_checkpoint
from shardproof.planner.loading.json_file import read_json
from shardproof.planner.loading.load import LoadedModel
from shardproof.planner.loading.quiet import quiet
from shardproof.verify.clients.contract.experiments.frames import raising_line
from shardproof.verify.clients.contract.processor_use import images_used, replacements_given
from shardproof.verify.clients.contract.source import function_tree, source_of
from shardproof.verify.findings import be424, be441

FILES = ("processor_config.json", "preprocessor_config.json")


@dataclass(frozen=True, slots=True)
class ProcessorCheck:
    """Findings of a processor for every client, and (`of_offsets`) for those that find images by replacement offsets."""

    found: tuple[Finding, ...] = ()
    of_offsets: tuple[Finding, ...] = ()


def check_processors(loaded: LoadedModel) -> ProcessorCheck:
    """The processor of a checkpoint, made and used; of a model without a checkpoint what its class says."""
    folder = loaded.checkpoint
    if folder is None or not _has_processor(folder, loaded.config):
        kind = processor_class(loaded.config)
        return ProcessorCheck(tuple(check_processor_class(kind)) if kind is not None else ())
    try:
        with quiet():
            made = AutoProcessor.from_pretrained(
                folder, trust_remote_code=loaded.trust_remote_code, local_files_only=True
            )
    except Exception as error:  # whatever the parts of a processor raise
        return ProcessorCheck((_not_made(error, loaded),))
    if not isinstance(made, ProcessorMixin):
        return ProcessorCheck()
    with quiet():
        found = tuple(check_processor(made))
        return ProcessorCheck(found, () if found else tuple(check_offsets(made)))


def _has_processor(folder: Path, config: PreTrainedConfig) -> bool:
    auto_map = getattr(config, "auto_map", None) or {}
    return any((folder / name).is_file() for name in FILES) or "AutoProcessor" in auto_map


def _not_made(error: Exception, loaded: LoadedModel) -> Finding:
    """A constructor of the model's own that raises, or that its files do not give its arguments, is at fault; a missing library
    or file means that nothing was checked.
    """
    source = raising_line(error) or _constructor_called(error, loaded)
    if not is_vision_available():
        return be424.not_checked(
            "the processor", "Pillow is not installed; without it Transformers makes no image processor"
        )
    if isinstance(error, ImportError | OSError) or source is None:
        reason = " ".join(str(error).split())[:160]
        return be424.not_checked("the processor", f"it cannot be made here: {reason}")
    return be441.constructor_raises(f"{type(error).__name__}: {error}", Place(source=source))


def _constructor_called(error: Exception, loaded: LoadedModel) -> Source | None:
    """The class of the checkpoint whose constructor was called with other arguments than it takes; None for another error."""
    match = re.match(r"(\w+)\.__init__\(\) ", str(error)) if isinstance(error, TypeError) else None
    if match is None or loaded.checkpoint is None or not loaded.trust_remote_code:
        return None
    reference = next((one for one in _named_classes(loaded.checkpoint) if one.endswith(f".{match[1]}")), None)
    if reference is None:
        return None
    kind = class_from_checkpoint(reference, str(loaded.checkpoint))
    return source_of(kind, function_tree(vars(kind).get("__init__")))


def _named_classes(folder: Path) -> list[str]:
    """The classes that the `auto_map` of any of a checkpoint's files names."""
    named: list[str] = []
    for file in (folder / name for name in ("config.json", *FILES)):
        fields = read_json(file) if file.is_file() else {}
        auto_map = fields.get("auto_map") if isinstance(fields, dict) else None
        named += [one for one in auto_map.values() if isinstance(one, str)] if isinstance(auto_map, dict) else []
    return named


def processor_class(config: PreTrainedConfig) -> type[ProcessorMixin] | None:
    """The processor that Transformers pairs with a config; None for a model of text."""
    if not hasattr(config, "vision_config"):
        return None
    auto = import_module("transformers.models.auto.processing_auto")
    name = auto.PROCESSOR_MAPPING_NAMES.get(config.model_type)
    found = getattr(transformers, name, None) if name else None
    return found if isinstance(found, type) and issubclass(found, ProcessorMixin) else None


def check_processor_class(kind: type[ProcessorMixin]) -> list[Finding]:
    """What can be told of a processor without making one."""
    if getattr(kind, "_get_num_multimodal_tokens", None) is None:
        return [be441.no_count_method(kind.__name__, Place(source=source_of(kind)))]
    return []


def check_processor(processor: ProcessorMixin) -> list[Finding]:
    """A processor that can be run: its attributes, then its counts and types for images of many sizes."""
    kind = type(processor)
    found = [*check_processor_class(kind), *_attributes(processor)]
    if found:
        return found
    return list({finding.message: finding for finding in images_used(processor)}.values())


def check_offsets(processor: ProcessorMixin) -> Iterator[Finding]:
    """Whether vLLM 0.32 finds the images of a prompt."""
    kind = type(processor)
    if not replacements_given(processor):
        yield be441.no_replacements(kind.__name__, Place(source=source_of(kind)))


def _attributes(processor: ProcessorMixin) -> Iterator[Finding]:
    kind = type(processor)
    for name in ("image_token", "image_token_ids"):
        try:
            missing = getattr(processor, name, None) is None
        except Exception as error:  # a property of the processor's own
            yield be441.raises(
                kind.__name__, f"reading {name}", f"{type(error).__name__}: {error}", _raised(error, kind)
            )
            continue
        if missing:
            yield be441.attribute_missing(kind.__name__, name, Place(source=source_of(kind)))


def _raised(error: Exception, kind: type) -> Place:
    return Place(source=raising_line(error) or source_of(kind))
