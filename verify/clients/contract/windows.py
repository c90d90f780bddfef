"""BE407: a sliding window that is in the config and not in the model's mask, or in the mask and not in the config.

vLLM knows windows from the config alone (0.32.0): `config.sliding_window` holds where `layer_types` says `sliding_attention`
(`model_executor/models/transformers/base.py`), and in every layer where there are no `layer_types` (`engine/arg_utils.py`).
Which masking function made a layer's mask is read from the trace.
"""

from torch import nn

from shardproof.planner.ir.findings import Finding, Place, Source
from shardproof.planner.ir.graph import Graph, Op
from shardproof.planner.loading.config_fields import field_of
from shardproof.planner.loading.source_lines import relative
from shardproof.verify.clients.contract.masks import behind, masking_calls, masks_of
from shardproof.verify.findings.be407 import WHOLE, WINDOWED, mask_window_differs


def check_windows(model: nn.Module, graph: Graph, decoder: str) -> list[Finding]:
    """One finding for each line that makes a mask with another window than the config's; none where no position is outside it."""
    config = getattr(model, "config", None)
    text = config.get_text_config() if config is not None else None
    window, positions = field_of(text, "sliding_window"), field_of(text, "max_position_embeddings")
    if not isinstance(window, int) or not window or (isinstance(positions, int) and window >= positions):
        return []
    made = masking_calls(model)
    found: dict[str, Finding] = {}
    for op in graph.ops:
        if decoder and not op.module.startswith(f"{decoder}."):
            continue
        reached = [call for mask in masks_of(graph, op) for call in behind(graph, mask, made)[1]]
        # A causal mask that needs no tensor leaves no trace: then it is one of those that the model's files make.
        if not reached and op.target == "attention":
            reached = list(made.values())
        functions = {call.function for call in reached}
        if functions in ({WHOLE}, {WINDOWED}) and _given(model, text, op) != (functions == {WINDOWED}):
            source = Source(relative(reached[0].file), reached[0].first)
            place = Place(module=op.module, source=source)
            found.setdefault(str(source), mask_window_differs(place, window, windowed=functions == {WINDOWED}))
    return list(found.values())


def _given(model: nn.Module, text: object, op: Op) -> bool:
    """Whether the client uses the window in the layer of this attention."""
    kinds = field_of(text, "layer_types")
    if not isinstance(kinds, list | tuple) or all(kind == "sliding_attention" for kind in kinds):
        return True
    layer = getattr(model.get_submodule(op.module), "layer_idx", None)
    return isinstance(layer, int) and layer < len(kinds) and kinds[layer] == "sliding_attention"
