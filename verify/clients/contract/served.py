"""BE409, BE410, BE418 and BE420: what an engine runs of a model, beside its attention.

What differs between versions is in `ContractFacts`. Source: vLLM 0.33.0, `vllm/model_executor/models/transformers/base.py`
(`forward`: the base model alone is run, with `input_ids` or `inputs_embeds`, and `position_ids`; `_create_hf_to_vllm_mapper`),
`causal.py` (the head is called `lm_head`; of the head class's forward only `logit_scale` and `final_logit_softcapping` are read,
from the config), `fusers/rms_norm.py` (`fuse`: a root-mean-square norm becomes vLLM's own, whose parameter is called `weight`).
SGLang 0.5.23, `sglang/srt/models/transformers.py`: positions, embeddings and the base model alone as well.
"""

import inspect
from collections.abc import Iterator, Sequence

from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from shardproof.planner.ir.dataflow import ops_between
from shardproof.planner.ir.findings import Finding, Place
from shardproof.planner.ir.graph import Graph, Op
from shardproof.planner.ir.plan import generic, join
from shardproof.planner.loading.configs.config_fields import field_of
from shardproof.verify.clients.contract.facts import ContractFacts
from shardproof.verify.clients.contract.source import forward_tree, source_of
from shardproof.verify.findings import be409, be410, be418, be420

HEAD, CAP = "lm_head", "final_logit_softcapping"
_KEEPS = ("aten.slice", "aten._to_copy", "aten.clone", "aten.contiguous", "aten.view", "aten.alias", "aten.index")
"""Ops that leave hidden states or logits what they are."""


def check_served(model: nn.Module, graph: Graph | None, prefix: str, contract: ContractFacts) -> list[Finding]:
    """Findings of the head, of the names of weights, and of the forward of the base model."""
    if not isinstance(model, PreTrainedModel):
        return []
    found = list(_forward(model, graph, prefix, contract))
    if contract.makes_head:
        found += _head_name(model, prefix, contract)
        if graph is not None:
            found += [*_norm_names(model, graph, contract), *_head_program(model, graph, prefix, contract)]
        found += _chosen_experts(model, prefix, contract)
    return found


def _forward(model: PreTrainedModel, graph: Graph | None, prefix: str, contract: ContractFacts) -> Iterator[Finding]:
    base, client = model.get_submodule(prefix), contract.client
    kind, source = type(base), source_of(type(base), forward_tree(type(base)))
    if getattr(model.config, "is_encoder_decoder", False):
        yield be418.encoder_decoder(kind.__name__, Place(source=source), client)
        return
    names = inspect.signature(kind.forward).parameters
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in names.values())
    wanted = contract.named_arguments + (() if open_ended else contract.open_arguments)
    for name in (name for name in wanted if name not in names):
        yield be418.argument_not_named(kind.__name__, name, Place(source=source), client)
        return
    if "position_ids" not in names and graph is not None and (op := _counted(graph, prefix)) is not None:
        yield be418.positions_counted(kind.__name__, Place(source=op.source or source), client)


def _counted(graph: Graph, prefix: str) -> Op | None:
    """A count of the tokens that reaches a product or an embedding of the base model, not only a mask."""
    for position, op in enumerate(graph.ops):
        inside = not prefix or op.module == prefix or op.module.startswith(f"{prefix}.")
        if inside and op.target == "aten.arange" and _placed(graph, position):
            return op
    return None


def _placed(graph: Graph, position: int) -> bool:
    """Whether what an op makes is looked up in a table, or turned into an angle."""
    wanted, seen = [position], set[int]()
    while wanted:
        at = wanted.pop()
        for value in graph.ops[at].outputs:
            for user in graph.users.get(value, ()):
                op = graph.ops[user]
                if op.target in ("embedding", "aten.embedding", "aten.cos", "aten.sin"):
                    return True
                if user not in seen and len(graph.values[op.outputs[0]].shape) <= 3 and op.target != "attention":
                    seen.add(user)
                    wanted.append(user)
    return False


def _head_name(model: PreTrainedModel, prefix: str, contract: ContractFacts) -> Iterator[Finding]:
    """An output layer that goes by another name in the checkpoint, or has a bias that the engine's has no place for."""
    head = _output(model)
    path = next((path for path, module in model.named_modules() if module is head), None) if head is not None else None
    if path is not None and not contract.head_has_bias and getattr(head, "bias", None) is not None:
        yield be410.head_has_a_bias(type(model).__name__, path, Place(source=source_of(type(model))), contract.client)
    if path is None or not prefix or path.rpartition(".")[2] == HEAD or path.startswith(f"{prefix}."):
        return
    if getattr(model.config.get_text_config(), "tie_word_embeddings", False):  # then no checkpoint holds it
        return
    renamed = [
        m for m in get_checkpoint_conversion_mapping(type(model).__name__) or () if isinstance(m, WeightRenaming)
    ]
    if renamed:  # what the checkpoint calls it is for the mapping to say
        return
    kind = type(model)
    yield be410.head_named_otherwise(kind.__name__, path, Place(source=source_of(kind)), contract.client)


def _output(model: PreTrainedModel) -> nn.Module | None:
    try:
        found = model.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return found if isinstance(found, nn.Module) else None


def _norm_names(model: PreTrainedModel, graph: Graph, contract: ContractFacts) -> Iterator[Finding]:
    """Root-mean-square norms whose one parameter is not called `weight`; one a class."""
    told: set[str] = set()
    for module in graph.modules:
        names = [name for name, _ in module.parameters]
        if len(names) != 1 or names == ["weight"] or module.kind in told or module.repeats is not None:
            continue
        if contract.norm_names and not module.kind.endswith(contract.norm_names):
            continue
        targets = [op.target for op in graph.ops if op.module == module.path]
        inverse = any(target in ("aten.rsqrt", "aten.pow") for target in targets)
        if "aten.mean" in targets and inverse and "linear" not in targets:
            told.add(module.kind)
            place = Place(module=generic(module.path), source=source_of(type(model.get_submodule(module.path))))
            yield be410.norm_weight_named_otherwise(module.kind, names[0], place, contract.client)


def _head_program(model: PreTrainedModel, graph: Graph, prefix: str, contract: ContractFacts) -> Iterator[Finding]:
    config = model.config.get_text_config()
    if getattr(config, "logit_scale", 1.0) is None:
        yield be409.logit_scale_is_none(type(config).__name__, contract.client)
    op, factors = head_op(model, graph, prefix, factors=contract.head_factors), contract.head_factors
    if op is not None:
        place = Place(source=op.source)
        yield be409.head_computes(type(model).__name__, op.target, place, client=contract.client, factors=factors)


def head_op(model: PreTrainedModel, graph: Graph, prefix: str, *, factors: Sequence[str]) -> Op | None:
    """The first op of the head's forward, besides one projection, that a client which projects by itself does not run; it knows
    the `factors` of the config.
    """
    base = next((call for call in graph.calls if call.module == prefix), None) if prefix else None
    if base is None or not base.outputs or not graph.outputs:
        return None
    head, config = _output(model), model.config.get_text_config()
    projections = {path for path, module in model.named_modules() if module is head}
    for op in ops_between(graph, base.outputs[0], graph.outputs[0][1]):
        projection = op.target == "linear" and op.module in projections
        if not projection and not _known_of_head(op, config, factors):
            return op
    return None


def _known_of_head(op: Op, config: object, factors: Sequence[str]) -> bool:
    """Whether the engine does the same as an op: it keeps the values, or scales or caps the logits as the config says."""
    if op.target == "aten.tanh":
        return CAP in factors and bool(getattr(config, CAP, None))
    if op.target in ("aten.mul", "aten.div"):
        known = {getattr(config, name, None) for name in factors}
        factor = next((a for a in op.args[1:] if isinstance(a, float | int)), None)
        return factor == 1 or (bool(factor) and factor in known)
    return op.target in _KEEPS


def _chosen_experts(model: PreTrainedModel, prefix: str, contract: ContractFacts) -> Iterator[Finding]:
    """Experts that the engine would run, and no field that says how many a token takes (`moe.py`, `recursive_replace`)."""
    text = model.config.get_text_config()
    for path, module in model.get_submodule(prefix).named_modules():
        stacked = [parameter.ndim == 3 for parameter in module.parameters()]
        ours = isinstance(module, nn.ModuleList) or (bool(stacked) and all(stacked))
        fields = contract.chosen_experts
        if path.rpartition(".")[2] == "experts" and ours and not any(field_of(text, name) for name in fields):
            place = Place(source=source_of(type(text)))
            yield be420.count_of_experts_missing(
                type(text).__name__, join(prefix, path), place, fields, contract.client
            )
            return
