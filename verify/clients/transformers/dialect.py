"""Transformers' own reading of a plan.

Source: Transformers 5.23.0. `distributed/mixin.py` (`init_parallel_plans`, `_expand_parallel_plan`): a key is looked up exactly,
layer numbers as `*`; base and head plans are composed. `distributed/parallel_utils.py` (`ALL_PARALLEL_STYLES`): 20 styles,
any other is refused. `distributed/pipeline_parallel.py`: `base_model.layers` is split evenly, `base_model_pp_plan` not read.
"""

from shardproof.planner.ir.styles import STYLES
from shardproof.verify.clients.contract.facts import ContractFacts
from shardproof.verify.clients.dialect import Dialect, Matching, Pipeline, Reader, UnknownStyle

TRANSFORMERS_CONTRACT = ContractFacts(
    client="transformers", keywords=("attention_keyword",), needs_keywords=False, calls_head=True
)
"""A keyword of any name reaches a registered attention function (Transformers' documentation of `AttentionInterface`), so one
without a meaning is tried.
"""

TRANSFORMERS = Dialect(
    client="transformers",
    version="5.23",
    cites=(
        "transformers/distributed/mixin.py",
        "transformers/distributed/parallel_utils.py",
        "transformers/distributed/pipeline_parallel.py",
    ),
    reader=Reader.TRANSFORMERS,
    matching=Matching.EXACT,
    styles={name: name for name in STYLES},
    unknown=UnknownStyle.REFUSED,
    pipeline=Pipeline.EVEN,
    hooks_gradients=True,
    reach="distributed_config=DistributedConfig(tp_size=N, tp_plan={...})",
    contract=TRANSFORMERS_CONTRACT,
)
