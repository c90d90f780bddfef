"""SGLang's Transformers backend.

Source: SGLang 0.5.23, `sglang/srt/models/transformers.py`. `_get_model_tp_plan`: the base model's plan, required above one rank.
`_normalize_tp_style`: five styles and some aliases; any other raises for the whole plan, at every degree.
`recursive_replace`: `re.match`, the first key decides, only `nn.Linear`. `_create_attention_instances`: heads and KV heads
must divide. `pipeline_parallel`: keys and their order, one module list.
"""

from shardproof.verify.clients.contract.facts import ContractFacts
from shardproof.verify.clients.dialect import Dialect, Matching, Pipeline, Reader, UnknownStyle

SGLANG_CONTRACT = ContractFacts(
    client="sglang",
    keywords=("attention_instances", "forward_batch"),
    own_attention=True,
    positional=("scaling", "attention_instances", "forward_batch"),
    is_modelled=True,
    window_needs_kinds=True,
    open_arguments=("inputs_embeds",),
    attention_lacks={"softcap": "soft-cap", "s_aux": "attention sinks"},
    makes_head=True,
    head_factors=("logit_scale", "final_logit_softcapping"),
    head_has_bias=False,
    norm_names=("RMSNorm",),
    chosen_experts=("num_experts_per_tok", "top_k"),
)
"""`_run_hf_backbone`, the attention of `_create_attention_instances`, the head of `CausalMixin`, `replace_rms_norm_class`."""

SGLANG = Dialect(
    client="sglang",
    version="0.5.23",
    cites=("sglang/srt/models/transformers.py",),
    reader=Reader.ENGINE,
    matching=Matching.PREFIX,
    styles={
        "colwise": "colwise",
        "packed_colwise": "colwise",
        "local_colwise": "colwise",
        "colwiseparallel": "colwise",
        "colwise_rep": "colwise_gather_output",
        "rowwise": "rowwise",
        "packed_rowwise": "rowwise",
        "local_rowwise": "rowwise",
        "local_packed_rowwise": "rowwise",
        "rowwiseparallel": "rowwise",
        "rowwise_rep": "rowwise_split_input",
        "replicate": "replicate",
        "embedding_rowwise": "replicate",
        "isolated": "replicate",
        "local": "replicate",
        "replicated_with_grad_allreduce": "replicate",
        "moe_tp_experts": "replicate",
    },
    unknown=UnknownStyle.REFUSED,
    pipeline=Pipeline.KEYS,
    reads_head=False,
    local_heads=True,
    reach="--json-model-override-args '{\"base_model_tp_plan\": {...}}', or the same keys in config.json",
    contract=SGLANG_CONTRACT,
)
