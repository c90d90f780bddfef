"""The plans that NeMo AutoModel has of its own, in styles of Transformers with the same effect.

Source: NeMo AutoModel 0.7.0, `components/distributed/optimized_tp_plans.py` (`PARALLELIZE_FUNCTIONS`), for classes of
Transformers, and `components/distributed/parallelizer.py` (`_get_parallel_plan`), the plan for Llama's names. A head whose
logits stay apart is written as gathered: the loss puts them together (`components/loss/masked_ce.py`). So are layers between
which NeMo passes a distributed tensor, of which any code sees the whole.
"""

from collections.abc import Mapping

from torch import nn

TABLE, GATHERED, SPLIT, SUMMED = (
    "embedding_rowwise",
    "colwise_gather_output",
    "rowwise_split_input",
    "replicated_with_grad_allreduce",
)
_QKV = {f"self_attn.{name}_proj": "colwise" for name in "qkv"}
_ATTENTION = {**_QKV, "self_attn.o_proj": "rowwise"}
_MLP = {"mlp.up_proj": "colwise", "mlp.gate_proj": "colwise", "mlp.down_proj": "rowwise"}
_FUSED = {"self_attn.qkv_proj": "colwise", "mlp.gate_up_proj": "colwise"}
_NORMS = {"self_attn.q_norm": SUMMED, "self_attn.k_norm": SUMMED}


def _plan(layer: Mapping[str, str], *, base: str = "model") -> dict[str, str]:
    layers = {f"{base}.layers.*.{name}": style for name, style in layer.items()}
    return {f"{base}.embed_tokens": TABLE, **layers, "lm_head": GATHERED}


LLAMA_NAMES: Mapping[str, str] = _plan({**_ATTENTION, **_MLP, **_FUSED})
"""What is applied in place of a plan that NeMo cannot read; names that a model lacks are passed over."""

_PHI = {**_QKV, "self_attn.dense": "rowwise", "mlp.fc1": "colwise", "mlp.fc2": "rowwise"}
_PHI_NORMS = {"self_attn.q_layernorm": SUMMED, "self_attn.k_layernorm": SUMMED}
_PHI3 = {
    "self_attn.qkv_proj": SPLIT,
    "self_attn.o_proj": GATHERED,
    "mlp.gate_up_proj": GATHERED,
    "mlp.down_proj": SPLIT,
}
_FALCON_H1 = {**_ATTENTION, **{name.replace("mlp.", "feed_forward."): style for name, style in _MLP.items()}}

OWN_PLANS: Mapping[str, Mapping[str, str]] = {
    "llama.modeling_llama.LlamaForCausalLM": LLAMA_NAMES,
    "qwen2.modeling_qwen2.Qwen2ForCausalLM": _plan({**_ATTENTION, **_MLP, **_FUSED, **_NORMS}),
    "qwen3.modeling_qwen3.Qwen3ForCausalLM": _plan({**_ATTENTION, **_MLP, **_FUSED, **_NORMS}),
    "gemma3.modeling_gemma3.Gemma3ForCausalLM": _plan({**_ATTENTION, **_MLP, **_NORMS}),
    "gemma3.modeling_gemma3.Gemma3ForConditionalGeneration": _plan(
        {**_ATTENTION, **_MLP, **_NORMS}, base="model.language_model"
    ),
    "mistral3.modeling_mistral3.Mistral3ForConditionalGeneration": _plan(
        {**_ATTENTION, **_MLP}, base="model.language_model"
    ),
    "phi.modeling_phi.PhiForCausalLM": _plan(_PHI),
    "phi3.modeling_phi3.Phi3ForCausalLM": _plan(_PHI3),
    "falcon_h1.modeling_falcon_h1.FalconH1ForCausalLM": _plan(_FALCON_H1),
}
"""By the class, below `transformers.models`; the client's own table, not ours."""


def own_plan(model: nn.Module) -> Mapping[str, str] | None:
    """The plan of NeMo's own for the class of a model; None where it has none."""
    kind = type(model)
    name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("transformers.models.")
    if name.endswith(".PhiForCausalLM") and name in OWN_PLANS and getattr(model.config, "qk_layernorm", False):
        return _plan({**_PHI, **_PHI_NORMS})
    return OWN_PLANS.get(name)
