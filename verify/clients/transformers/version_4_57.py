"""Transformers 4.57, the last of 4: the reading that engines and checkpoints of that time were written for.

Source: 4.57.6. `integrations/tensor_parallel.py`: the styles (`ParallelInterface`), the exact look-up with layer numbers as `*`
(`_get_parameter_tp_plan`), parameters by their own name or their module's; a style that is not there is refused
(`distribute_model`), a key that matches nothing and a module without a key stay whole (`verify_tp_plan` logs both).
`modeling_utils.py`, `post_init`: an instance's plan is the one of its config and those of its children, so that the entries of a
head class (`_tp_plan` of the class) have no effect; `_tie_or_clone_weights`: a tied head gets the hooks of the input embedding;
`from_pretrained` takes `tp_plan="auto"` alone. Run with 4.57.6 on two ranks:
`colwise_rep` splits a table by rows and sums the lookups; `rowwise` and `colwise` of a table do not give the whole hidden states.
"""

from shardproof.verify.clients.contract.facts import ContractFacts
from shardproof.verify.clients.dialect import Dialect, Matching, Pipeline, Reader, UnknownStyle

TRANSFORMERS_4_57 = Dialect(
    client="transformers",
    version="4.57",
    cites=("transformers/integrations/tensor_parallel.py", "transformers/modeling_utils.py"),
    reader=Reader.MODULES,
    matching=Matching.EXACT,
    styles={
        "colwise": "colwise",
        "rowwise": "rowwise",
        "colwise_rep": "colwise_gather_output",
        "rowwise_rep": "rowwise_split_input",
        "replicate": "replicate",
    },
    embeddings={"colwise_rep": "embedding_rowwise", "replicate": "replicate"},
    unmodelled=frozenset(
        {
            *("local_colwise", "local_rowwise", "local_packed_rowwise", "local", "gather"),
            *("sequence_parallel", "grouped_gemm", "ep_router"),
        }
    ),
    names_parameters=True,
    ties_styles=True,
    table_style="colwise_rep",
    unknown=UnknownStyle.REFUSED,
    pipeline=Pipeline.NONE,
    reads_head=False,
    hooks_gradients=True,
    code_of="4.57",
    contract=ContractFacts(
        client="transformers", keywords=("attention_keyword",), needs_keywords=False, calls_head=True
    ),
)
