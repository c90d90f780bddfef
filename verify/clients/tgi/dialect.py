"""Text Generation Inference: Transformers' reading, with its own attention on local heads.

Source: text-generation-inference 3.3.7 (maintenance mode),
`server/text_generation_server/models/transformers_flash_causal_lm.py`: loads with `tp_plan="auto"`, then divides
`num_attention_heads` and (above one) `num_key_value_heads` by the degree with no check, except for the model types in
`REPLICATED_ATTENTION_MODELS`, whose attention it takes as whole. No pipeline parallelism, no CPU path.
"""

from dataclasses import replace

from shardproof.verify.clients.contract.facts import ContractFacts
from shardproof.verify.clients.dialect import Pipeline
from shardproof.verify.clients.transformers.dialect import TRANSFORMERS

TGI_CONTRACT = ContractFacts(
    client="tgi",
    keywords=("kv_cache", "slots", "cu_seqlen_prefill", "block_tables"),
    calls_head=True,
    own_attention=True,
    uses_auto_model=False,
    open_arguments=("inputs_embeds",),
)

TGI = replace(
    TRANSFORMERS,
    client="tgi",
    version="3.3",
    cites=("server/text_generation_server/models/transformers_flash_causal_lm.py",),
    pipeline=Pipeline.NONE,
    hooks_gradients=False,
    local_heads=True,
    whole_attention=frozenset({"olmo2", "phi3"}),
    reach="",
    contract=TGI_CONTRACT,
)
