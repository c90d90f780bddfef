"""What vLLM asks of a model, 0.24.0 to 0.32.0.

Source: `vllm/model_executor/models/registry.py` (`_try_resolve_transformers`) and `vllm/model_executor/models/transformers/`
(`base.py`, `causal.py`, `fusers/`); `attention_instances` is given up to 0.25, and vLLM asks of models still to pass it on.
"""

from shardproof.verify.clients.contract.facts import ContractFacts

VLLM_CONTRACT = ContractFacts(
    client="vllm",
    keywords=("attention_instances",),
    own_attention=True,
    takes_interface_users=True,
    reads_source=True,
    attention_from_config=True,
    makes_head=True,
    named_arguments=("input_ids", "inputs_embeds", "position_ids"),
)
"""`named_arguments`: `_decorate_for_torch_compile` looks for them in the signature of the decoder's forward."""
