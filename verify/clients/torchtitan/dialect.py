"""torchtitan's Transformers backend: it reads no plan, and looks for attribute names.

Source: torchtitan 0.2.2, `torchtitan/experiments/transformers_modeling_backend/hf_sharding.py`
(`_set_layer_sharding_configs`): the names below, of every layer; an attention without a known query or key projection
raises, and so does a parameter that no name covers. Parameters are DTensors, so every gradient is summed where it must be.
"""

from shardproof.verify.clients.dialect import Dialect, Matching, Pipeline, Reader, UnknownStyle

TORCHTITAN = Dialect(
    client="torchtitan",
    version="0.2.2",
    cites=("torchtitan/experiments/transformers_modeling_backend/hf_sharding.py",),
    reader=Reader.NAMES,
    matching=Matching.EXACT,
    styles={},
    unknown=UnknownStyle.REFUSED,
    pipeline=Pipeline.NAMES,
    needs_plan=False,
)
