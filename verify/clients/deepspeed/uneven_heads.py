"""The programs that AutoTP's ranks run where heads are dealt unevenly: one proof for each number of heads.

A rank with `k` key-value heads runs the program of an even layout whose model has `k` heads for each rank. So the plan is
proved for that model, for every `k` above 0 that is dealt. Besides, the program of every rank is traced at its own sizes,
those without a head too, and has to run the same operators: the sizes that are written into the model's code fit.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import nn

from shardproof.planner.inputs.example import accept_form, accepted_form
from shardproof.planner.ir.findings import Finding
from shardproof.planner.ir.graph import Graph
from shardproof.planner.ir.placement import Shard
from shardproof.planner.ir.styles import After, Before
from shardproof.planner.loading.configs.config_fields import field_of
from shardproof.planner.loading.load import LoadedModel
from shardproof.planner.propagation.assign import Assigned
from shardproof.planner.tracing.programs import Subject, on_meta, subject_of
from shardproof.planner.tracing.recorded_run import TraceError
from shardproof.planner.tracing.session import structural_copy
from shardproof.planner.tracing.trace import trace
from shardproof.planner.twins.small_configs import fields_of, rebuilt
from shardproof.verify.clients.deepspeed.shard_sizes import Deal, deal_attributes, deal_of
from shardproof.verify.findings import be417


@dataclass(frozen=True, slots=True)
class _Cut:
    """A sharded parameter: its module, its name there, the sharded dim and its size."""

    module: str
    local: str
    dim: int
    total: int


def dealt_subjects(
    loaded: LoadedModel, subject: Subject, assigned: Assigned, degree: int, *, client: str
) -> tuple[Subject, ...] | Finding:
    """The models for which the plan is to be proved in place of this one; a finding where there are none.

    Where every rank has the same number of heads, that is the model itself, with its attributes as the engine divides them.
    """
    deal, cuts = deal_of(subject.model.config, degree), tuple(_cuts(subject.model, assigned))
    uneven = [cut for cut in cuts if deal.size(cut.total, cut.module, 0) != -(-cut.total // degree)]
    if not uneven:
        return (_with_dealt_attributes(subject, cuts, deal),)
    first = uneven[0].module
    for rank in range(degree):
        if why := _rank_fails(subject, assigned, cuts, deal, rank):
            return be417.uneven_heads_not_proved(first, client, f"the program of rank {rank} is not known ({why})")
    found = []
    for count in sorted({deal.size(deal.kv_heads or 0, "", rank) for rank in range(degree)} - {0}):
        variant = _with_heads(loaded, count * degree)
        again = _subject(variant) if variant is not None else None
        if again is None or not _in_step(cuts, again, deal, count):
            return be417.uneven_heads_not_proved(first, client, f"no model with {count} heads a rank was found")
        own = deal_of(again.model.config, degree)
        found.append(_with_dealt_attributes(again, cuts, own))
    return tuple(found)


def _cuts(model: nn.Module, assigned: Assigned) -> Iterator[_Cut]:
    for name, (placement, _) in assigned.parameters.items():
        if isinstance(placement, Shard):
            module, _, local = name.rpartition(".")
            yield _Cut(module, local, placement.dim, model.get_parameter(name).shape[placement.dim])


def _copied(subject: Subject) -> nn.Module:
    copied = structural_copy(subject.model)
    if (form := accepted_form(subject.model)) is not None:
        accept_form(copied, form)
    return copied


def _with_dealt_attributes(subject: Subject, cuts: tuple[_Cut, ...], deal: Deal) -> Subject:
    copied = _copied(subject)
    changed = deal_attributes(copied, {cut.module for cut in cuts}, deal, 0)
    return replace(subject, model=copied) if changed else subject


def _rank_fails(subject: Subject, assigned: Assigned, cuts: tuple[_Cut, ...], deal: Deal, rank: int) -> str:
    """Why the program of a rank is not the one of one device at other sizes; empty where it is."""
    copied = _copied(subject)
    for cut in cuts:
        style, _ = assigned.modules[cut.module]
        if style.after is After.GATHER or style.before in (Before.SPLIT, Before.TAKE_IDS):
            continue  # the module takes and gives what is whole
        owner = copied.get_submodule(cut.module)
        whole = owner.get_parameter(cut.local)
        shape = list(whole.shape)
        shape[cut.dim] = deal.size(cut.total, cut.module, rank)
        owner._parameters[cut.local] = nn.Parameter(torch.empty(shape, dtype=whole.dtype, device="meta"))
    deal_attributes(copied, {cut.module for cut in cuts}, deal, rank)
    try:
        graph = trace(copied)
    except TraceError as error:
        return str(error)
    if [op.target for op in graph.ops] != [op.target for op in subject.graph.ops]:
        return "it runs other operators"
    return "" if _outputs(graph) == _outputs(subject.graph) else "its outputs have other sizes"


def _outputs(graph: Graph) -> Mapping[str, tuple[int, ...]]:
    return {name: tuple(graph.values[number].shape) for name, number in graph.outputs}


def _with_heads(loaded: LoadedModel, kv_heads: int) -> LoadedModel | None:
    """The model with this number of key-value heads, and as many query heads for each; None where the config does not say."""
    config = loaded.config
    heads = field_of(config, "num_attention_heads")
    kv = field_of(config, "num_key_value_heads") or heads
    if config.get_text_config() is not config or not isinstance(heads, int) or not isinstance(kv, int):
        return None
    fields, names = fields_of(config), dict(config.attribute_map)
    changed: dict[str, int] = {"num_attention_heads": heads // kv * kv_heads}
    if field_of(config, "num_key_value_heads") is not None:
        changed["num_key_value_heads"] = kv_heads
    hidden = field_of(config, "hidden_size")
    if not fields.get("head_dim") and isinstance(hidden, int):
        changed["hidden_size"] = hidden * kv_heads // kv
    kept: dict[int, LoadedModel] = vars(loaded).setdefault("_with_heads", {})
    if kv_heads not in kept:
        with suppress(Exception):  # a config class may refuse sizes
            made = rebuilt(config, {**fields, **{names.get(name, name): value for name, value in changed.items()}})
            made._attn_implementation = config._attn_implementation
            kept[kv_heads] = replace(loaded, config=made, checkpoint=None)
    return kept.get(kv_heads)


def _subject(loaded: LoadedModel) -> Subject | None:
    try:
        return subject_of(on_meta(loaded))
    except Exception:  # the model's code may refuse sizes
        return None


def _in_step(cuts: tuple[_Cut, ...], again: Subject, deal: Deal, count: int) -> bool:
    """Whether every sharded dim has kept its size, or has grown as the number of heads has."""
    known = dict(again.model.named_parameters(remove_duplicate=False))
    for cut in cuts:
        value = known.get(f"{cut.module}.{cut.local}")
        if value is None or deal.kv_heads is None:
            return False
        total = value.shape[cut.dim]
        if total != cut.total and total * deal.kv_heads != cut.total * count * deal.degree:
            return False
    return True
