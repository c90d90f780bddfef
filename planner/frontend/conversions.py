"""What the client does to weights between a checkpoint and a model, where sharding comes before it."""

import re
from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import Interleave, WeightConverter


def interleaved(model: nn.Module) -> dict[str, int]:
    """Parameters whose two halves lie in turns in a checkpoint, and the dim along which they do.

    The client cuts what the checkpoint holds, and puts each rank's part in order afterwards: a rank's part of such a dim is
    not the part of the model's parameter that its placement says (transformers 5.23.0, core_model_loading.py, `Interleave`).
    """
    return dict(_found(model)) if isinstance(model, PreTrainedModel) else {}


def _found(model: PreTrainedModel) -> Iterator[tuple[str, int]]:
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for transform in get_model_conversion_mapping(model):
        if not isinstance(transform, WeightConverter):
            continue
        dims = [op.dim for op in transform.operations if isinstance(op, Interleave)]
        targets = transform.target_patterns if dims else []
        for name in names:
            if any(re.search(pattern, name) for pattern in targets):
                yield name, dims[0]
