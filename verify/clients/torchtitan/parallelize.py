"""torch's own `parallelize_module`, as a reader of plans in the styles of `torch.distributed.tensor.parallel`.

Source: torch 2.13, `distributed/tensor/parallel/api.py` (`parallelize_module`): one pattern for each part of a path.
`distributed/tensor/parallel/style.py`: linear layers and embeddings alone. Each module's parameters are distributed anew, so
parameters that two modules share are no longer shared.
"""

from dataclasses import replace

from torch import nn

from shardproof.planner.ir.plan import Plan, TpEntry, generic, join
from shardproof.verify.clients.dialect import Dialect, Matching, Pipeline, Reader, UnknownStyle

PARALLELIZE = Dialect(
    client="parallelize_module",
    version="2.13",
    cites=("torch/distributed/tensor/parallel/api.py", "torch/distributed/tensor/parallel/style.py"),
    reader=Reader.MODULES,
    matching=Matching.EXACT,
    styles={
        "colwise": "colwise",
        "colwise_gather_output": "colwise_gather_output",
        "colwise_rep": "colwise_gather_output",
        "rowwise": "rowwise",
        "rowwise_split_input": "rowwise_split_input",
        "rowwise_rep": "rowwise_split_input",
        "embedding_rowwise": "embedding_rowwise",
        "embedding_colwise": "embedding_colwise",
        "replicated_with_grad_allreduce": "replicated_with_grad_allreduce",
    },
    unknown=UnknownStyle.REFUSED,
    pipeline=Pipeline.NONE,
    needs_plan=False,
    hooks_gradients=True,
)
"""Not one of the clients that `--for` names: torchtitan shards by attribute names, and others take such a plan as it is."""


def without_shared(model: nn.Module, prefix: str, plan: Plan) -> tuple[Plan, tuple[str, ...]]:
    """The plan without entries of modules that share a parameter, and the patterns of these, relative to the head model."""
    owners: dict[int, set[str]] = {}
    for path, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(generic(path))
    shared = {path for paths in owners.values() if len(paths) > 1 for path in paths}

    def split(entries: tuple[TpEntry, ...], inside: str) -> tuple[tuple[TpEntry, ...], tuple[str, ...]]:
        kept = tuple(entry for entry in entries if join(inside, entry.pattern) not in shared)
        return kept, tuple(join(inside, entry.pattern) for entry in entries if entry not in kept)

    (tp, lost), (head, lost_of_head) = split(plan.tp, prefix), split(plan.head_tp, "")
    return replace(plan, tp=tp, head_tp=head), lost + lost_of_head
