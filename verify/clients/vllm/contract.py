"""What vLLM asks of a model, 0.24.0 to 0.33.0.

Source: `vllm/model_executor/models/registry.py` (`_try_resolve_transformers`) and `vllm/model_executor/models/transformers/`
(`__init__.py`, `base.py`, `causal.py`, `fusers/`). Up to 0.25 the attention gets `attention_instances` and `scaling` from the
call. 0.32 puts its attention on the module and reads the scale off the source, so it needs no keywords; its documentation still
asks models to pass them on.
"""

from dataclasses import replace

from shardproof.verify.clients.contract.facts import ContractFacts

VLLM_CONTRACT_0_24 = ContractFacts(
    client="vllm",
    keywords=("attention_instances",),
    own_attention=True,
    attention_lacks={"s_aux": "attention sinks"},
    positional=("scaling", "attention_instances"),
    is_modelled=True,
    attention_from_config=True,
    makes_head=True,
    head_factors=("logit_scale",),
    head_has_bias=False,
    norm_names=("RMSNorm",),
    chosen_experts=("num_experts_per_tok", "top_k"),
    named_arguments=("input_ids", "inputs_embeds", "position_ids"),
)
"""`named_arguments`: `_decorate_for_torch_compile` looks for them in the signature of the decoder's forward."""

VLLM_CONTRACT_0_25 = replace(VLLM_CONTRACT_0_24, head_has_bias=True, norm_names=())
"""`causal.py`: the head may have a bias; `fusers/rms_norm.py`: norms are found by what they compute, before by their class's name
(`base.py`, `recursive_replace`, 0.24.0)."""

VLLM_CONTRACT_0_32 = replace(
    VLLM_CONTRACT_0_25,
    needs_keywords=False,
    positional=(),
    takes_interface_users=True,
    attention_lacks={},
    reads_source=True,
    finds_images_by_offsets=True,
    head_factors=("logit_scale", "final_logit_softcapping"),
)

VLLM_CONTRACT_0_33 = replace(
    VLLM_CONTRACT_0_32,
    chosen_experts=(
        "num_experts_per_tok",
        "num_experts_per_token",
        "top_k_experts",
        "moe_topk",
        "moe_top_k",
        "top_k",
    ),
)
"""`vllm/transformers_utils/config.py` (`CONFIG_FIELD_ALIASES`)."""
