"""torchtitan's Transformers backend: it reads no plan, and looks for attribute names.

Source: torchtitan 0.2.2 and 0.3.0, `torchtitan/experiments/transformers_modeling_backend/hf_sharding.py`
(`_set_layer_sharding_configs`): the names below, of every layer; an attention without a known query or key projection
raises, and so does a parameter that no name covers. Parameters are DTensors, so every gradient is summed where it must be.
"""

from dataclasses import replace

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

TORCHTITAN_0_3 = replace(
    TORCHTITAN,
    version="0.3.0",
    cites=(
        "torchtitan/experiments/transformers_modeling_backend/hf_sharding.py",
        "torchtitan/experiments/transformers_modeling_backend/model.py",
        "torchtitan/experiments/transformers_modeling_backend/parallelize.py",
    ),
    names_everything=True,
)
"""Read as it was released: the names of the base model, of norms and of each layer are in `attribute_names.py`. A tied head is
copied first, and trained apart from the table.
"""
