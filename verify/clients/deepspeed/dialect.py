"""DeepSpeed AutoTP's reader of Transformers plans (training).

Source: DeepSpeed 0.19.8. `module_inject/tp_plan_converter.py` (`TPPlanConverter`): six styles, any other is refused with the
whole plan; keys become regular expressions on the weight's name, `*` standing for anything. What becomes of each module is in
`layout.py`, what each rank holds in `shard_sizes.py`.
"""

from shardproof.verify.clients.dialect import Dialect, Matching, Pipeline, Reader, UnknownStyle

DEEPSPEED = Dialect(
    client="deepspeed",
    version="0.19.8",
    cites=("deepspeed/module_inject/tp_plan_converter.py", "deepspeed/runtime/tensor_parallel/config.py"),
    reader=Reader.DEEPSPEED,
    matching=Matching.SUFFIX,
    styles={
        "colwise": "colwise",
        "colwise_rep": "colwise_gather_output",
        "colwise_gather_output": "colwise_gather_output",
        "rowwise": "rowwise",
        "replicated_with_grad_allreduce": "replicated_with_grad_allreduce",
        "embedding_rowwise": "replicate",
    },
    unknown=UnknownStyle.REFUSED,
    pipeline=Pipeline.NONE,
    needs_plan=False,
    hooks_gradients=True,
)
