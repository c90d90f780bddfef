"""Types of Transformers with few layers, all the kinds among them: what holds for a layer is seen in less time."""

from shardproof.planner.loading.load import LoadedModel, load


def shallow(name: str, *, layers: int = 4) -> LoadedModel:
    """A type at its default sizes, but for its number of layers."""
    return load(name, overrides={"num_hidden_layers": str(layers)})
