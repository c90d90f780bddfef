"""What AutoTP makes of each module of a model with a plan.

Source: DeepSpeed 0.19.8. `runtime/tensor_parallel/config.py` (`_get_hf_tp_plan`): the plans of the config, the class and the
instance, in this order. `runtime/engine.py` (`_apply_autotp_partitioning`): an output head that is tied to a table which the
plan splits by rows keeps its vocabulary apart, and the loss is computed on the parts. `module_inject/auto_tp.py`: which
modules a style reaches.
"""

from collections.abc import Mapping

from torch import nn

from shardproof.planner.ir.graph import Graph, Module
from shardproof.planner.ir.plan import Plan
from shardproof.verify.clients.deepspeed.shard_sizes import HEADS
from shardproof.verify.clients.dialect import Dialect, first_match

GATHERED, ROWS, COLUMNS = "colwise_gather_output", "embedding_rowwise", "embedding_colwise"


def styles_read(model: nn.Module, prefix: str, plan: Plan) -> dict[str, str]:
    """The keys that the engine sees, in its order; Transformers adds one for the table of a model that has any."""
    found = {entry.pattern: entry.style for entry in plan.tp}
    found |= {entry.pattern: entry.style for entry in plan.head_tp}
    base = model.get_submodule(prefix)
    if plan.tp and isinstance(getattr(base, "embed_tokens", None), nn.Embedding) and "embed_tokens" not in found:
        found["embed_tokens"] = "embedding_rowwise"
    return found


def layout_of(dialect: Dialect, model: nn.Module, graph: Graph, styles: Mapping[str, str]) -> dict[str, str]:
    """The Transformers style of the same effect for every module that the engine changes, by path."""
    found: dict[str, str] = {}
    for module in graph.modules:
        pattern = first_match(dialect.matching, styles, module.path)
        effect = dialect.effect(styles[pattern]) if pattern is not None else None
        if effect is not None and effect != "replicate" and _takes_effect(model, module, effect):
            found[module.path] = effect
    return found | _of_head(model, styles, found)


def _takes_effect(model: nn.Module, module: Module, effect: str) -> bool:
    """Whether a style takes effect: layers of two dims are cut; a gradient is summed of a parameter called `weight` alone."""
    local = [name for name, _ in module.parameters]
    if effect == "replicated_with_grad_allreduce":
        return local == ["weight"]
    return "weight" in local and model.get_parameter(f"{module.path}.weight").dim() == 2


def vocabulary_apart(model: nn.Module, styles: Mapping[str, str]) -> str | None:
    """The path of the output head whose logits stay apart, or None."""
    wanted = any(style.lower() == ROWS for style in styles.values())
    heads = [path for path, module in model.named_modules() if _is_head(path, module)]
    tied = [one for path in heads for one in _tied_tables(model, path)]
    plain = all(
        type(model.get_submodule(one)).forward is nn.Embedding.forward
        or type(model.get_submodule(one)).__name__ == "Gemma3TextScaledWordEmbedding"
        for one in tied
    )
    return heads[0] if wanted and tied and plain and len(heads) == 1 else None


def _of_head(model: nn.Module, styles: Mapping[str, str], found: Mapping[str, str]) -> dict[str, str]:
    """What becomes of output heads and of the tables that they are tied to."""
    apart = vocabulary_apart(model, styles)
    if apart is not None:
        return {apart: GATHERED, **dict.fromkeys(_tied_tables(model, apart), ROWS)}
    changed: dict[str, str] = {}
    for path, module in model.named_modules():
        tables = _tied_tables(model, path)
        if found.get(path) == GATHERED and tables:
            changed |= dict.fromkeys((path, *tables), "replicate")
        elif found.get(path) == "rowwise" and _is_head(path, module):
            changed |= {path: "rowwise_split_input", **dict.fromkeys(tables, COLUMNS)}
    return changed


def _is_head(path: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and path.rpartition(".")[2] in HEADS


def _tied_tables(model: nn.Module, path: str) -> list[str]:
    """The embeddings that share the weight of a module which is none."""
    own = getattr(model.get_submodule(path), "weight", None)
    if own is None or isinstance(model.get_submodule(path), nn.Embedding):
        return []
    tables = ((name, one) for name, one in model.named_modules(remove_duplicate=False) if isinstance(one, nn.Embedding))
    return [name for name, one in tables if one.weight is own]
