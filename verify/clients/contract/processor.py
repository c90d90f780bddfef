"""BE441 to BE443: processors of multimodal models.

Source: `vllm/model_executor/models/transformers/multimodal.py`, 0.32.0 (`_get_num_multimodal_tokens` for the number of tokens
that an image becomes, `mm_token_type_ids` for where they lie), and `transformers/processing_utils.py`, 5.23.0
(`MultiModalData`).
"""

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from itertools import groupby
from typing import Protocol, runtime_checkable

import transformers
from transformers import AutoProcessor, PreTrainedConfig
from transformers.processing_utils import MultiModalData, ProcessorMixin

from shardproof.planner.ir.findings import Finding, Place
from shardproof.planner.loading.load import LoadedModel
from shardproof.verify.clients.contract.source import source_of
from shardproof.verify.findings import be441, be442, be443

FILES = ("processor_config.json", "preprocessor_config.json")
SIZES = ((224, 224), (64, 160), (300, 100))
"""Heights and widths of the images that counts are compared on."""
TEXT, IMAGE, VIDEO = 0, 1, 2


@runtime_checkable
class _Counts(Protocol):
    image_token: str
    image_token_ids: Sequence[int]

    def _get_num_multimodal_tokens(self, image_sizes: Sequence[Sequence[int]], **kwargs: object) -> MultiModalData: ...


def processor_class(config: PreTrainedConfig) -> type[ProcessorMixin] | None:
    """The processor that Transformers pairs with a config; None for a model of text."""
    if not hasattr(config, "vision_config"):
        return None
    auto = import_module("transformers.models.auto.processing_auto")
    name = auto.PROCESSOR_MAPPING_NAMES.get(config.model_type)
    found = getattr(transformers, name, None) if name else None
    return found if isinstance(found, type) and issubclass(found, ProcessorMixin) else None


def made_processor(loaded: LoadedModel) -> ProcessorMixin | None:
    """The processor of a checkpoint folder; None where it has none, or it cannot be made here (images need Pillow)."""
    folder = loaded.checkpoint
    if folder is None or not any((folder / name).is_file() for name in FILES):
        return None
    try:
        made = AutoProcessor.from_pretrained(folder, trust_remote_code=loaded.trust_remote_code, local_files_only=True)
    except Exception:  # whatever the parts of a processor raise where a package or a file is missing
        return None
    return made if isinstance(made, ProcessorMixin) else None


def check_processor_class(kind: type[ProcessorMixin]) -> list[Finding]:
    """What can be told of a processor without making one."""
    if getattr(kind, "_get_num_multimodal_tokens", None) is None:
        return [be441.no_count_method(kind.__name__, _place(kind))]
    return []


def check_processor(processor: ProcessorMixin) -> list[Finding]:
    """A processor that can be run: its tokens, its counts for several image sizes, its token types."""
    kind = type(processor)
    found = check_processor_class(kind)
    for name in ("image_token", "image_token_ids"):
        if getattr(processor, name, None) is None:
            found.append(be441.attribute_missing(kind.__name__, name, _place(kind)))
    if found:
        return found
    for height, width in SIZES:
        found += _of_size(processor, height, width)
    return list({finding.message: finding for finding in found}.values())


def _of_size(processor: ProcessorMixin, height: int, width: int) -> Iterable[Finding]:
    import numpy

    kind = type(processor)
    assert isinstance(processor, _Counts), "the class was checked first"
    counted = processor._get_num_multimodal_tokens(image_sizes=[(height, width)])
    if not isinstance(counted, MultiModalData) or not counted.num_image_tokens:
        yield be441.no_counts(kind.__name__, _place(kind))
        return
    image = numpy.zeros((height, width, 3), dtype=numpy.uint8)
    made = processor(text=processor.image_token, images=[image], return_mm_token_type_ids=True)
    types = _row(made, "mm_token_type_ids")
    if types is None:
        yield be443.types_not_returned(kind.__name__, _place(kind))
        return
    ids = _row(made, "input_ids") or []
    emitted = sum(kind_ == IMAGE for kind_ in types)
    expected = counted.num_image_tokens[0]
    if emitted != expected:
        size = (height, width)
        yield be442.count_differs(kind.__name__, _place(kind), counted=expected, emitted=emitted, size=size)
    if sum(value in (IMAGE, VIDEO) for value, _ in groupby(types)) > 1:
        yield be443.types_not_contiguous(kind.__name__, _place(kind))
    strange = {i for i, t in zip(ids, types, strict=True) if t == IMAGE} - set(processor.image_token_ids)
    if strange:
        yield be443.token_not_of_image(kind.__name__, min(strange), _place(kind))


def _place(kind: type) -> Place:
    return Place(source=source_of(kind))


def _row(made: Mapping[str, object], key: str) -> list[int] | None:
    """The first row of what a processor returned under a key."""
    value = made.get(key)
    listed = value.tolist() if hasattr(value, "tolist") else value
    row = listed[0] if isinstance(listed, list) and listed else None
    return row if isinstance(row, list) else None


def check_processors(loaded: LoadedModel) -> list[Finding]:
    made = made_processor(loaded)
    if made is not None:
        return check_processor(made)
    kind = processor_class(loaded.config)
    return check_processor_class(kind) if kind is not None else []
