"""What the attention of a client computes in the place of one call of the interface: its scale, window, soft-cap and sinks."""

from torch import Tensor, nn

from shardproof.planner.loading.configs.config_fields import field_of, head_width
from shardproof.verify.clients.contract.experiments.client_attention import AttentionCall, AttentionSpec
from shardproof.verify.clients.contract.experiments.trial import Trial
from shardproof.verify.clients.contract.facts import ContractFacts
from shardproof.verify.clients.vllm.attention_call import scale_read

SOFTCAP = "attn_logit_softcapping"
"""The config field in which vLLM looks for a soft-cap of the scores."""
SLIDING = "sliding_attention"


def client_spec(trial: Trial, contract: ContractFacts, call: AttentionCall) -> AttentionSpec:
    """The attention of the client, which knows the config, and of the call what its interface takes.

    vLLM 0.32: `base.py` (`_create_attention_instances`); 0.25: the same, and `vllm_attention_forward` (`scaling`); SGLang 0.5.23:
    `_create_attention_instances`, `sglang_flash_attention_forward`.
    """
    cap = field_of(trial.text, SOFTCAP) if "softcap" not in contract.attention_lacks else None
    sinks = call.options.get("s_aux") if "s_aux" not in contract.attention_lacks else None
    return AttentionSpec(
        client_scale(trial, contract, call),
        window=client_window(trial.text, contract, call.layer),
        softcap=float(cap) if isinstance(cap, int | float) else 0.0,
        sinks=sinks if isinstance(sinks, Tensor) else None,
    )


def client_scale(trial: Trial, contract: ContractFacts, call: AttentionCall) -> float:
    """The factor of the scores in the client; that of the call where the client would raise."""
    if contract.reads_source:
        read = scale_read(call.module, head_width(trial.text))
        return call.scale if read is None else read
    named = dict(zip(contract.positional, call.extra, strict=False)) | dict(call.options)
    given = named.get("scaling")
    return float(given) if isinstance(given, float | int | Tensor) else float(call.query.shape[-1]) ** -0.5


def client_window(text: object, contract: ContractFacts, layer: object) -> int:
    """The window, in tokens, of the client's attention in a layer; 0 for none."""
    window, kinds = field_of(text, "sliding_window"), field_of(text, "layer_types")
    if not isinstance(window, int) or isinstance(window, bool) or window <= 0:
        return 0
    if not isinstance(kinds, list | tuple) or not kinds:
        return 0 if contract.window_needs_kinds else window
    if not contract.window_needs_kinds and all(kind == SLIDING for kind in kinds):
        return window
    return window if isinstance(layer, int) and layer < len(kinds) and kinds[layer] == SLIDING else 0


def is_encoder(model: nn.Module) -> bool:
    """Whether engines take a model of text for an encoder: one of its modules says that it is not causal."""
    return any(getattr(module, "is_causal", True) is False for module in model.modules())
