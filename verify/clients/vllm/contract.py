"""What vLLM asks of a model, 0.24.0 to 0.32.0.

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
    takes_interface_users=True,
    positional=("scaling", "attention_instances"),
    is_modelled=True,
    attention_from_config=True,
    makes_head=True,
    named_arguments=("input_ids", "inputs_embeds", "position_ids"),
)
"""`named_arguments`: `_decorate_for_torch_compile` looks for them in the signature of the decoder's forward."""

VLLM_CONTRACT_0_32 = replace(
    VLLM_CONTRACT_0_24, needs_keywords=False, positional=(), reads_source=True, finds_images_by_offsets=True
)
