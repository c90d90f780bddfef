"""NeMo AutoModel's reader of a model's plan (training), for Transformers' own classes (`force_hf: true`).

Source: NeMo AutoModel 0.7.0, `components/distributed/parallelizer.py`: `translate_to_torch_parallel_style` has these styles,
`get_hf_tp_shard_plan` drops a few others without a word, and `_get_parallel_plan` replaces the whole plan where there is any
style besides. Which plan is applied is in `plan_choice.py`, what becomes of each module in `layout.py`. Gradients of parameters
that are whole on every rank are averaged over the ranks, those of `replicated_with_grad_allreduce` summed
(`components/distributed/tp_replicas.py`).
"""

from shardproof.verify.clients.dialect import Dialect, Matching, Pipeline, Reader, UnknownStyle

NEMO = Dialect(
    client="nemo",
    version="0.7.0",
    cites=(
        "nemo_automodel/components/distributed/parallelizer.py",
        "nemo_automodel/components/distributed/optimized_tp_plans.py",
        "nemo_automodel/components/distributed/tp_replicas.py",
    ),
    reader=Reader.NEMO,
    matching=Matching.PARTS,
    styles={
        "colwise": "colwise",
        "colwise_rep": "colwise_gather_output",
        "colwise_gather_output": "colwise_gather_output",
        "rowwise": "rowwise",
        "rowwise_rep": "rowwise_split_input",
        "sequence_parallel": "sequence_parallel",
        "replicated_with_grad_allreduce": "replicated_with_grad_allreduce",
        "ep_router": "replicate",
        "ep_dispatch_experts": "replicate",
        "local_colwise": "replicate",
        "local_rowwise": "replicate",
        "gather": "replicate",
    },
    unknown=UnknownStyle.REPLACED,
    pipeline=Pipeline.NONE,
    needs_plan=False,
    hooks_gradients=True,
    table_style="rowwise_rep",
    reach="base_model_tp_plan in config.json, where NeMo has no plan of its own for the class, or `tp_plan` in its recipe",
)
