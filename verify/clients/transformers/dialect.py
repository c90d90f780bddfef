"""Transformers' own reading of a plan.

Source: the installed version, Transformers 5.16 to 5.24. `distributed/mixin.py` (`init_parallel_plans`): base and head plans are
composed. `distributed/tensor_parallel.py`: a key is looked up exactly, layer numbers as `*` (`_get_parameter_plan`); a style that
is not in `ALL_PARALLEL_STYLES` is refused. `distributed/pipeline_parallel.py`: `base_model.layers` is split evenly,
`base_model_pp_plan` not read.
"""

from shardproof.planner.ir.styles import STYLES
from shardproof.planner.transformers_facts.version import minor_text, style_exists
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
    version=minor_text(),
    cites=(
        "transformers/distributed/mixin.py",
        "transformers/distributed/tensor_parallel.py",
        "transformers/distributed/pipeline_parallel.py",
    ),
    reader=Reader.TRANSFORMERS,
    matching=Matching.EXACT,
    styles={name: name for name in STYLES if style_exists(name)},
    unknown=UnknownStyle.REFUSED,
    pipeline=Pipeline.EVEN,
    hooks_gradients=True,
    reach="distributed_config=DistributedConfig(tp_size=N, tp_plan={...})",
    contract=TRANSFORMERS_CONTRACT,
)
