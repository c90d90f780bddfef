"""Spread a plan over the modules and parameters of a model, the way a client reads its keys."""

from collections.abc import Mapping
from dataclasses import dataclass

from planner.ir.graph import Graph
from planner.ir.placement import Placement
from planner.ir.plan import generic, join
from planner.ir.styles import STYLES, Style


@dataclass(frozen=True, slots=True)
class Assigned:
    """The style and entry of every planned module, the placement and entry of every planned parameter."""

    modules: Mapping[str, tuple[Style, str]]
    parameters: Mapping[str, tuple[Placement, str]]


def assign(graph: Graph, styles: Mapping[str, str], *, base_prefix: str = "") -> Assigned:
    """Spread `styles` (keys as the head model sees them) as Transformers 5.23 does (`distributed/mixin.py`).

    Layer numbers match `*`; then the key is looked up exactly; a parameter falls back to its own module only; a model's
    child called `embed_tokens` is split over the vocabulary by itself. Unknown styles are left out: the plan check reports
    them.
    """
    if styles:
        styles = {**dict.fromkeys(automatic(graph, base_prefix), "embedding_rowwise"), **styles}
    modules: dict[str, tuple[Style, str]] = {}
    parameters: dict[str, tuple[Placement, str]] = {}
    for module in graph.modules:
        key = generic(module.path)
        if (name := styles.get(key)) is not None and name in STYLES:
            modules[module.path] = (STYLES[name], key)
        for local, number in module.parameters:
            name = join(module.path, local)
            entry = next((k for k in (generic(name), key) if k in styles), None)
            if entry is not None and styles[entry] in STYLES:
                placement = STYLES[styles[entry]].placement(local, len(graph.values[number].shape))
                parameters[name] = (placement, entry)
    return Assigned(modules, parameters)


def automatic(graph: Graph, base_prefix: str) -> list[str]:
    """Patterns of the embeddings that get a style without an entry: `embed_tokens` of every model but the head."""
    found = []
    for module in graph.modules:
        embedding = graph.module_of.get(join(module.path, "embed_tokens"))
        is_model = "PreTrainedModel" in module.bases and bool(module.path or not base_prefix)
        if is_model and embedding is not None and "Embedding" in embedding.bases:
            found.append(generic(embedding.path))
    return found
