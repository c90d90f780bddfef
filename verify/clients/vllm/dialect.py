"""vLLM's Transformers backend, at three versions.

Source: `vllm/model_executor/models/transformers/` of 0.24.0, 0.25.0 and 0.32.0. `base.py` (`recursive_replace`): keys of the base
model's composed plan get the prefix `model.` and are tried with `re.match` in dictionary order; only `nn.Linear` follows
them. `utils.py` (`replace_linear_class`): five styles, any other is a `ReplicatedLinear`. Input embeddings, the head
(`causal.py`) and `experts` (`moe.py`) are handled without the plan. `base.py` (`pipeline_parallel`): keys and their order.
`config/model.py` (`verify_with_parallel_config`, `get_num_kv_heads`): heads must divide; at least one KV head a rank.
"""

from dataclasses import replace

from shardproof.verify.clients.dialect import Dialect, Matching, Pipeline, Reader, UnknownStyle
from shardproof.verify.clients.vllm.contract import VLLM_CONTRACT_0_24, VLLM_CONTRACT_0_32

_PACKAGE = "vllm/model_executor/models/transformers"

VLLM_0_24 = Dialect(
    client="vllm",
    version="0.24",
    cites=(f"{_PACKAGE}/base.py", f"{_PACKAGE}/utils.py", f"{_PACKAGE}/causal.py", f"{_PACKAGE}/moe.py"),
    reader=Reader.ENGINE,
    matching=Matching.PREFIX,
    styles={
        "colwise": "colwise",
        "rowwise": "rowwise",
        "colwise_gather_output": "colwise_gather_output",
        "rowwise_split_input": "rowwise_split_input",
        "replicate": "replicate",
    },
    unknown=UnknownStyle.REPLICATED,
    pipeline=Pipeline.KEYS,
    keeps_tied=True,
    reads_head=False,
    local_heads=True,
    reach='hf_overrides={"base_model_tp_plan": {...}, "base_model_pp_plan": {...}}, or the same keys in config.json',
    contract=VLLM_CONTRACT_0_24,
)

VLLM_0_25 = replace(VLLM_0_24, version="0.25", cites=(*VLLM_0_24.cites, f"{_PACKAGE}/fusers/"), fuses=("glu", "qkv"))
"""`fuser.py`: graph fusers decide query, key, value and gate, up before the plan is asked."""

VLLM_0_32 = replace(
    VLLM_0_25,
    version="0.32",
    pipeline=Pipeline.KEYS_OR_ORDER,
    needs_plan=False,
    fuses=("mla", "glu", "qkv", "packed_qkv", "merged"),
    repeats_kv=True,
    gathers_norms=True,
    cuts_sinks=True,
    contract=VLLM_CONTRACT_0_32,
    latent_types=frozenset(
        "axk1 deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 deepseek_v41 dots3_note glm5_next glm5_next_text glm_moe_dsa "
        "glm4_moe_lite kimi_k2 kimi_linear longcat_flash pangu_ultra_moe bailing_hybrid hy_v4".split()
    ),
)
"""`fuser.py` (`FUSERS`): also packed query-key-value and merged sibling projections; `fusers/rms_norm.py` (`TPAwareNormMixin`)
gathers a sharded input; `fusers/attention.py` cuts attention sinks; `latent_types` is the list of
`vllm/transformers_utils/model_arch_config_convertor.py` (`is_deepseek_mla`); without a plan it warns, and shards what fuses."""
