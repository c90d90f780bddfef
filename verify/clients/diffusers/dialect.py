"""diffusers' own runtime: `_tp_plan` of a model's class, applied by torch's `parallelize_module`.

Source: diffusers 0.42.1, `hooks/tensor_parallel.py`: `_styles` has `colwise`, `rowwise` and both with packed blocks, each block
of which has to divide (`resolve_tp_shard_specs`); any other style raises. It is made for inference: no gradient is summed over
the ranks, so a plan is not judged by its gradients.
"""

from shardproof.verify.clients.dialect import Dialect, Matching, Pipeline, Reader, UnknownStyle

DIFFUSERS = Dialect(
    client="diffusers",
    version="0.42.1",
    cites=("diffusers/hooks/tensor_parallel.py",),
    reader=Reader.MODULES,
    matching=Matching.EXACT,
    styles={"colwise": "colwise", "rowwise": "rowwise"},
    unknown=UnknownStyle.REFUSED,
    pipeline=Pipeline.NONE,
    packs=True,
)
"""Not one of the clients that `--for` names: it reads plans of its own models, and their forms have a reader of their own."""
