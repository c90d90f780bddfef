"""What an engine shards without the plan: fused projections, vocabulary and head, experts, attention sinks."""

import ast
from collections.abc import Iterable, Mapping
from functools import cache

from torch import nn

from shardproof.planner.ir.graph import Graph, Module
from shardproof.planner.ir.placement import Placement, Shard
from shardproof.planner.ir.plan import generic, join
from shardproof.planner.loading.configs.config_fields import head_width
from shardproof.planner.tracing.programs import Subject
from shardproof.verify.clients.contract.source import forward_tree
from shardproof.verify.clients.dialect import Dialect, SharedExperts
from shardproof.verify.clients.vllm.fusers import fusions, is_linear


def engine_styles(dialect: Dialect, subject: Subject, degree: int) -> dict[str, str]:
    """The styles that an engine gives by itself: to fused projections, the vocabulary table, the head."""
    found: dict[str, str] = {}
    config = getattr(subject.model, "config", None)
    text = config.get_text_config() if config is not None else None
    latent = text is not None and text.model_type in dialect.latent_types
    kinds = tuple(kind for kind in dialect.fuses if kind != "mla" or latent)
    for fusion in fusions(subject.graph, subject.model, kinds, degree=degree, head_dim=head_width(text)):
        if not is_expert(subject.graph, fusion.module):
            found |= fusion.styles
    found |= {
        twin: style for path, style in list(found.items()) for twin in repeats(subject.graph, path) if twin not in found
    }
    paths = {id(module): path for path, module in subject.model.named_modules()}
    for getter, style in (
        ("get_input_embeddings", "embedding_rowwise"),
        ("get_output_embeddings", "colwise_gather_output"),
    ):
        module = embedding_of(subject.model, getter)
        if module is not None and (path := paths.get(id(module))) is not None:
            found[path] = style
    return found


def embedding_of(model: nn.Module, getter: str) -> nn.Module | None:
    """The module that `get_input_embeddings` or `get_output_embeddings` returns; None where there is none."""
    try:
        found = getattr(model, getter)()
    except (AttributeError, NotImplementedError):
        return None
    return found if isinstance(found, nn.Module) else None


def sinks(subject: Subject) -> dict[str, tuple[Placement, str]]:
    """Parameters that a module's own forward passes to the attention as `s_aux=self.<name>`, cut by heads."""
    return {
        join(path, name): (Shard(0), generic(join(path, name)))
        for path, module in subject.model.named_modules()
        if module._parameters
        for name in _passed_as_sinks(type(module))  # type: ignore[arg-type]  # a class is hashable
        if module._parameters.get(name) is not None
    }


@cache
def _passed_as_sinks(kind: type[nn.Module]) -> tuple[str, ...]:
    tree = forward_tree(kind)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)] if tree is not None else []
    given = [k.value for call in calls for k in call.keywords if k.arg == "s_aux"]
    return tuple(value.attr for value in given if isinstance(value, ast.Attribute))


def repeats(graph: Graph, path: str) -> list[str]:
    """Paths of the same module in the layers that repeat its layer."""
    return [
        module.path + path.removeprefix(module.repeats)
        for module in graph.modules
        if module.repeats is not None and path.startswith(f"{module.repeats}.")
    ]


def is_expert(graph: Graph, path: str) -> bool:
    """Whether a path is in a module `experts` that is a list or holds only stacked weights.

    Engines run those themselves, with whole inputs and outputs (vLLM `moe.py`, SGLang `MoEMixin`).
    """
    parts = path.split(".")
    for depth, part in enumerate(parts, 1):
        owner = graph.module_of.get(".".join(parts[:depth]))
        if part == "experts" and owner is not None:
            stacked = [graph.values[number].shape for _, number in owner.parameters]
            return "ModuleList" in owner.bases or (bool(stacked) and all(len(shape) == 3 for shape in stacked))
    return False


def doubtful_shared_experts(dialect: Dialect, graph: Graph, without_plan: Mapping[str, str]) -> list[str]:
    """Modules beside experts that give as much as they do, of which it is not known that they give what the sum over the ranks
    wants.

    Source: vLLM 0.33.0, `fusers/moe.py` (`MoEBlockFuser`) and `layers/fused_moe/runner/moe_runner.py`
    (`_maybe_reduce_final_output`): a shared expert is added before the sum, so that one that is whole counts once a rank.
    """
    if dialect.shared_experts is SharedExperts.APART:
        return []
    widths = {call.module: graph.values[call.outputs[0]].shape[-1:] for call in graph.calls if len(call.outputs) == 1}
    gated = dialect.shared_experts is SharedExperts.SUMMED_GATED
    found = []
    for experts in (m.path for m in graph.modules if m.path.endswith(".experts") and is_expert(graph, m.path)):
        block = f"{experts.rpartition('.')[0]}."
        below: dict[str, list[str]] = {}
        for module in graph.modules:
            name, _, inside = module.path.removeprefix(block).partition(".")
            if module.path.startswith(block) and name != "experts" and inside and is_linear(module):
                below.setdefault(block + name, []).append(module.path)
        wanted = widths.get(experts) or widths.get(block[:-1])
        alike = [path for path in below if (width := widths.get(path)) is not None and wanted in (width, None)]
        found += [path for path in alike if not (gated and _is_gated(below[path], without_plan))]
    return found


def _is_gated(paths: Iterable[str], without_plan: Mapping[str, str]) -> bool:
    """Whether the linear layers are those of one fused gated feed-forward layer, the one behind the product among them."""
    styles = [without_plan.get(path) for path in paths]
    return "rowwise" in styles and set(styles) == {"colwise", "rowwise"}


def may_be_norm(module: Module) -> bool:
    """Whether a module may be a norm, by its form: one or two parameters, and no linear layer, embedding or layer norm."""
    return (
        0 < len(module.parameters) <= 2 and not is_linear(module) and not set(module.bases) & {"Embedding", "LayerNorm"}
    )
