"""A processor in use: what it counts for an image, what it emits, and how it types the tokens, for many sizes and prompts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy
from transformers.processing_utils import MultiModalData, ProcessorMixin

from shardproof.planner.ir.findings import Finding, Place
from shardproof.verify.clients.contract.experiments.frames import raising_line
from shardproof.verify.clients.contract.source import source_of
from shardproof.verify.findings import be424, be441, be442, be443

Size = tuple[int, int]
"""Height and width of an image, in pixels."""

SIZES: tuple[Size, ...] = (
    (224, 224),
    (64, 160),
    (160, 64),
    (300, 100),
    (100, 300),
    (640, 480),
    (480, 640),
    (225, 337),
    (337, 225),
    (1000, 50),
    (50, 1000),
    (97, 97),
    (32, 32),
    (20, 20),
)
TINY = 28
"""A side below this, in pixels, may be less than one patch: processors of Transformers may refuse such an image."""
TEXT, IMAGE = 0, 1


@dataclass(frozen=True, slots=True)
class ImagePrompt:
    """A prompt with images of these sizes, and text where `words` has it: before, between and after the images."""

    sizes: tuple[Size, ...]
    words: tuple[str, ...]

    def text(self, token: str) -> str:
        """The prompt with a placeholder for each image."""
        parts = [self.words[0]]
        for word in self.words[1:]:
            parts += [token, word]
        return " ".join(part for part in parts if part)


def prompts() -> Iterator[ImagePrompt]:
    """Each size alone and inside of text; several images of several sizes; an image between long texts."""
    for size in SIZES:
        yield ImagePrompt((size,), ("", ""))
        yield ImagePrompt((size,), ("look at", "and say"))
    yield ImagePrompt((SIZES[0], SIZES[1]), ("one", "two", "three"))
    yield ImagePrompt((SIZES[2], SIZES[0], SIZES[5]), ("", "and", "and", "what differs ?"))
    yield ImagePrompt((SIZES[1], SIZES[1]), ("the same", "twice", ""))


def images_used(processor: ProcessorMixin) -> Iterator[Finding]:
    """Findings of every prompt, the first of each code, until one raises."""
    told: set[str] = set()
    for finding in _all_findings(processor):
        if finding.code not in told:
            told.add(finding.code)
            yield finding


def _all_findings(processor: ProcessorMixin) -> Iterator[Finding]:
    kind = type(processor)
    for prompt in prompts():
        sizes = ", ".join(f"{height} x {width}" for height, width in prompt.sizes)
        try:
            yield from _of_prompt(processor, prompt)
        except Exception as error:  # whatever a processor raises
            if isinstance(error, ImportError):
                yield be424.not_checked("the processor", " ".join(str(error).split())[:160])
                return
            tiny = any(min(size) < TINY for size in prompt.sizes)
            if tiny and kind.__module__.startswith("transformers."):
                continue
            place = Place(source=raising_line(error) or source_of(kind))
            yield be441.raises(kind.__name__, f"an image of {sizes}", f"{type(error).__name__}: {error}", place)
            return
    yield from _without_images(processor)


def _of_prompt(processor: Any, prompt: ImagePrompt) -> Iterator[Finding]:
    kind = type(processor)
    place = Place(source=source_of(kind))
    counted = processor._get_num_multimodal_tokens(image_sizes=[list(size) for size in prompt.sizes])
    counts = counted.num_image_tokens if isinstance(counted, MultiModalData) else None
    if not counts or len(counts) != len(prompt.sizes):
        yield be441.no_counts(kind.__name__, place)
        return
    made = _called(processor, prompt, return_mm_token_type_ids=True)
    types, ids = _row(made, "mm_token_type_ids"), _row(made, "input_ids") or []
    if types is None:
        yield be443.types_not_returned(kind.__name__, place)
        return
    wrong = list(_types(processor, types, ids, place))
    yield from wrong
    if wrong:
        return
    emitted = sum(one == IMAGE for one in types)
    if emitted != sum(counts):
        yield be442.count_differs(kind.__name__, place, counted=sum(counts), emitted=emitted, sizes=prompt.sizes)
        return
    runs = [len(list(run)) for one, run in groupby(types) if one == IMAGE]
    apart = all(prompt.words[1:-1])
    if len(runs) != len(prompt.sizes) and apart:
        yield be443.types_not_contiguous(kind.__name__, place)
    elif runs != list(counts) and apart:
        size = next(size for size, run, count in zip(prompt.sizes, runs, counts, strict=True) if run != count)
        at = prompt.sizes.index(size)
        yield be442.count_differs(kind.__name__, place, counted=counts[at], emitted=runs[at], sizes=(size,))


def _types(processor: Any, types: Sequence[int], ids: Sequence[int], place: Place) -> Iterator[Finding]:
    """Tokens whose type is not what they are."""
    kind = type(processor).__name__
    if len(types) != len(ids):
        yield be443.types_of_other_length(kind, place, types=len(types), tokens=len(ids))
        return
    known = set(processor.image_token_ids)
    strange = {token for token, one in zip(ids, types, strict=True) if one == IMAGE} - known
    if strange:
        yield be443.token_not_of_image(kind, min(strange), place)
    untyped = {token for token, one in zip(ids, types, strict=True) if one == TEXT} & known
    if untyped:
        yield be443.token_typed_as_text(kind, min(untyped), place)
    if other := set(types) - {TEXT, IMAGE}:
        yield be443.type_unknown(kind, min(other), place)


def _called(processor: Any, prompt: ImagePrompt, **wanted: bool) -> Mapping[str, object]:
    """The processor's answer; images are Pillow's, as engines give them, or arrays for a processor that takes no others."""
    text = prompt.text(placeholder(processor))
    arrays = [numpy.zeros((height, width, 3), dtype=numpy.uint8) for height, width in prompt.sizes]
    try:
        from PIL import Image  # type: ignore[import-not-found,unused-ignore]  # Pillow is optional
    except ImportError:
        made: Mapping[str, object] = processor(text=text, images=arrays, **wanted)
        return made
    try:
        made = processor(text=text, images=[Image.fromarray(one) for one in arrays], **wanted)
    except Exception as error:
        try:
            made = processor(text=text, images=arrays, **wanted)
        except Exception:  # it takes neither: the first error is what a client sees
            raise error from None
    return made


def placeholder(processor: Any) -> str:
    """The text that stands for an image in a prompt (`multimodal.py`, `get_dummy_text`, 0.32.0)."""
    if "gemma3" in type(processor).__name__.lower():
        return str(processor.boi_token)
    ends = (getattr(processor, name, "") or "" for name in ("image_start_token", "image_end_token"))
    first, last = ends
    return f"{first}{processor.image_token}{last}"


def _without_images(processor: Any) -> Iterator[Finding]:
    """A prompt of text alone: it runs, and no token has the type of an image.

    vLLM from 0.32 on tokenizes such a prompt itself; whoever calls the processor does not. Transformers' own processors may want
    an image.
    """
    kind = type(processor)
    try:
        types = _row(processor(text="words alone", return_mm_token_type_ids=True), "mm_token_type_ids")
    except Exception as error:  # whatever a processor raises
        if not kind.__module__.startswith("transformers."):
            place = Place(source=raising_line(error) or source_of(kind))
            yield be441.raises(kind.__name__, "text without images", f"{type(error).__name__}: {error}", place)
        else:
            yield be441.text_refused(kind.__name__, Place(source=raising_line(error) or source_of(kind)), str(error))
        return
    if types is not None and any(types):
        yield be443.text_typed_as_image(kind.__name__, Place(source=source_of(kind)))


def replacements_given(processor: Any) -> bool:
    """Whether the processor says where its placeholders were and what they became (vLLM 0.32 asks for it)."""
    try:
        made = _called(processor, ImagePrompt((SIZES[0],), ("", "")), return_text_replacement_offsets=True)
    except Exception:  # it does not take the argument
        return False
    offsets = made.get("text_replacement_offsets")
    return isinstance(offsets, Sequence) and len(offsets) > 0 and len(offsets[0]) > 0


def _row(made: Mapping[str, object], key: str) -> list[int] | None:
    """The first row of what a processor returned under a key."""
    listed = _as_list(made.get(key))
    row = _as_list(listed[0]) if isinstance(listed, list) and listed else None
    return row if isinstance(row, list) else None


def _as_list(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value
