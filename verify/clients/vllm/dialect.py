"""vLLM's Transformers backend, at four versions.

Source: `vllm/model_executor/models/transformers/` of 0.24.0, 0.25.0, 0.32.0 and 0.33.0. `base.py` (`recursive_replace`): keys of
the base model's composed plan get the prefix `model.` and are tried with `re.match` in dictionary order; only `nn.Linear` follows
them. `utils.py` (`replace_linear_class`): five styles, any other is a `ReplicatedLinear`. Input embeddings, the head
(`causal.py`) and `experts` (`moe.py`) are handled without the plan. `base.py` (`pipeline_parallel`): keys and their order.
`config/model.py` (`verify_with_parallel_config`, `get_num_kv_heads`): heads must divide; at least one KV head a rank.
"""

from dataclasses import replace

from shardproof.verify.clients.dialect import Dialect, Matching, Pipeline, Reader, SharedExperts, UnknownStyle
from shardproof.verify.clients.vllm.contract import (
    VLLM_CONTRACT_0_24,
    VLLM_CONTRACT_0_25,
    VLLM_CONTRACT_0_32,
    VLLM_CONTRACT_0_33,
)

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

VLLM_0_25 = replace(
    VLLM_0_24,
    version="0.25",
    cites=(*VLLM_0_24.cites, f"{_PACKAGE}/fusers/"),
    fuses=("glu", "qkv"),
    shared_experts=SharedExperts.SUMMED,
    contract=VLLM_CONTRACT_0_25,
)
"""`fuser.py`: graph fusers decide query, key, value and gate, up before the plan is asked. `fusers/moe.py`: a
block of experts that matches runs whole in the engine, and its shared expert is added before the sum over the ranks."""

VLLM_0_32 = replace(
    VLLM_0_25,
    version="0.32",
    pipeline=Pipeline.KEYS_OR_ORDER,
    needs_plan=False,
    fuses=("mla", "glu", "qkv", "packed_qkv", "merged"),
    repeats_kv=True,
    gathers_norms=True,
    cuts_sinks=True,
    shared_experts=SharedExperts.SUMMED_GATED,
    contract=VLLM_CONTRACT_0_32,
    latent_types=frozenset(
        "axk1 deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 deepseek_v41 dots3_note glm5_next glm5_next_text glm_moe_dsa "
        "glm4_moe_lite kimi_k2 kimi_linear longcat_flash pangu_ultra_moe bailing_hybrid hy_v4".split()
    ),
)
"""`fuser.py` (`FUSERS`): also packed query-key-value and merged sibling projections; `fusers/rms_norm.py` (`TPAwareNormMixin`)
gathers a sharded input; `fusers/attention.py` cuts attention sinks; `latent_types` is the list of
`vllm/transformers_utils/model_arch_config_convertor.py` (`is_deepseek_mla`); without a plan it warns, and shards what fuses."""

VLLM_0_33 = replace(
    VLLM_0_32, version="0.33", cites=(*VLLM_0_32.cites, f"{_PACKAGE}/mtp.py"), contract=VLLM_CONTRACT_0_33
)
"""`base.py` (`_tp_plan`): the plan is that of the model; only the draft model of multi-token prediction (`mtp.py`) has one of
its own, made of the entries of `layers.*`. A draft serves speculative decoding alone, and nothing is said of it here.
`fusers/moe.py`: a block is fused too where its router stays with Transformers. `fx_utils.py` records less where a forward reads
a parameter: the linear layers that it comes to are the same."""

SERVED_ON_CPU = VLLM_0_32
"""The version of the newest CPU build, which `--level client` and the benchmarks run."""
