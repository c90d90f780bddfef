"""The attribute names by which torchtitan shards a model, and what it does with each.

Source: torchtitan 0.2.2, `torchtitan/experiments/transformers_modeling_backend/hf_sharding.py`
(`_set_layer_sharding_configs`); 0.3.0, the same file, and the properties of `HFTransformerModel` in `model.py` beside it.
"""

from collections.abc import Mapping
from inspect import signature

from torch import nn

from shardproof.planner.ir.graph import Graph
from shardproof.verify.clients.vllm.fusers import is_linear

NAMES: tuple[tuple[str, str], ...] = (
    ("self_attn.q_b_proj", "colwise"),
    ("self_attn.q_proj", "colwise"),
    ("self_attn.kv_b_proj", "colwise"),
    ("self_attn.k_proj", "colwise"),
    ("self_attn.v_proj", "colwise"),
    ("self_attn.o_proj", "rowwise"),
    ("self_attn.dense", "rowwise"),
    ("mlp.gate_proj", "colwise"),
    ("mlp.fc1", "colwise"),
    ("mlp.up_proj", "colwise"),
    ("mlp.down_proj", "rowwise"),
    ("mlp.fc2", "rowwise"),
)
"""Paths in a layer, and what torchtitan does with them; the client's own table, not ours."""

PROJECTIONS = (("q_proj", "q_a_proj"), ("k_proj", "kv_a_proj_with_mqa"), ("v_proj", "kv_a_proj_with_mqa"))
"""Of each, an attention must have one: it raises otherwise."""


def layout_by_names(graph: Graph) -> dict[str, str] | None:
    """The style of every linear layer that has a known name; None where an attention has no known projection.

    What no name covers stays whole here; torchtitan itself refuses it where it has parameters.
    """
    paths = [module.path for module in graph.modules]
    if not all(any(path.endswith(f".self_attn.{name}") for path in paths for name in names) for names in PROJECTIONS):
        return None
    styled = ((module, _style_of(module.path)) for module in graph.modules if is_linear(module))
    return {module.path: style for module, style in styled if style is not None}


ROOT = (("embed_tokens",), ("layers",), ("norm", "final_layernorm"), ("rotary_emb",))
"""Of each, `model` of the head model must have one (0.3.0)."""
WHOLE = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
    *(f"self_attn.{name}" for name in ("q_a_proj", "q_a_layernorm", "kv_a_proj_with_mqa", "kv_a_layernorm")),
    *(f"self_attn.{name}" for name in ("q_norm", "k_norm", "v_norm")),
)
"""Paths in a layer that stay whole on every rank (0.3.0)."""
UNBIASED = {"attention_bias": "self_attn", "mlp_bias": "mlp"}
"""Config fields that 0.3.0 sets to False (`model.py`, `update_from_config`), and the part of a layer that has the biases."""
NEEDED = (
    ("self_attn.q_proj", "self_attn.q_a_proj"),
    ("self_attn.k_proj", "self_attn.kv_a_proj_with_mqa"),
    ("self_attn.v_proj", "self_attn.kv_a_proj_with_mqa"),
    ("self_attn.o_proj", "self_attn.dense"),
    ("mlp.gate_proj", "mlp.fc1"),
    ("mlp.down_proj", "mlp.fc2"),
)
"""Of each, a layer must have one (0.3.0)."""


def missing_name(model: nn.Module) -> str:
    """What 0.3.0 raises for, in a few words: an attribute that is not there, or a module without a case; empty where it
    shards the model.
    """
    base = getattr(model, "model", nn.Module())
    for group in ROOT:
        if not any(hasattr(base, name) for name in group):
            return f"no `model.{group[0]}`"
    if not hasattr(model, "lm_head"):
        return "no `lm_head`"
    table = getattr(base, "embed_tokens", None)
    names = [*signature(table.forward).parameters] if isinstance(table, nn.Module) else []
    taken = names[0] if names else ""
    if taken != "input":
        return f"`model.embed_tokens` takes its ids as `{taken}`, not as `input`"
    known = {name for name, _ in NAMES} | set(WHOLE)
    for layer in _layers(model):
        experts = "mlp." if _has_experts(layer) else "\0"
        held = {path for path, _ in layer.named_modules()}
        for group in NEEDED:
            if not any(path in held for path in group) and not group[0].startswith(experts):
                return f"no `{group[0]}` in a layer"
        bearing = (path for path, module in layer.named_modules() if path and _has_state(module))
        other = next((path for path in bearing if path not in known and not path.startswith(experts)), None)
        if other is not None:
            return f"`{other}` of a layer has parameters or buffers, and no case"
    return _lost_biases(model)


def _lost_biases(model: nn.Module) -> str:
    """A config field that gives layers biases, and that 0.3.0 sets to False; empty where there is none."""
    for field, part in UNBIASED.items():
        biased = any(f".{part}." in name and name.endswith(".bias") for name, _ in model.named_parameters())
        if biased and getattr(getattr(model, "config", None), field, False):
            return f"`config.{field}` is set to False, and the model has biases by it"
    return ""


def summed_biases(layout: Mapping[str, str], model: nn.Module) -> list[str]:
    """The layers whose outputs 0.3.0 sums over the ranks together with their biases (`rowwise_config`), by path."""
    return [
        path
        for path, style in layout.items()
        if style == "rowwise" and getattr(model.get_submodule(path), "bias", None) is not None
    ]


def replaced_experts(model: nn.Module) -> str:
    """The path in a layer of experts for which 0.3.0 puts its own in place; empty where there are none."""
    return next(("mlp" for layer in _layers(model) if _has_experts(layer)), "")


def _layers(model: nn.Module) -> list[nn.Module]:
    layers = getattr(getattr(model, "model", None), "layers", None)
    return list(layers) if isinstance(layers, nn.ModuleList) else []


def _has_experts(layer: nn.Module) -> bool:
    mlp = getattr(layer, "mlp", None)
    return hasattr(mlp, "experts") and (hasattr(mlp, "gate") or hasattr(mlp, "router"))


def _has_state(module: nn.Module) -> bool:
    own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    return bool(own)


def _style_of(path: str) -> str | None:
    return next((style for name, style in NAMES if path.endswith(f".{name}")), None)
