"""A plan of the base model, as PEFT reads it for the layers of an adapter.

Source: PEFT 0.21.2, `tuners/lora/model.py`, `_create_and_replace`: beside a `colwise` base layer, B is `colwise` and A whole;
beside a `rowwise` one, A is `rowwise` and B whole; beside any other style, PEFT warns and gives no factor a style. Other methods
than LoRA have none.
"""

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from shardproof.planner.ir.plan import Plan, TpEntry, generic, join

FACTORS = {"colwise": "lora_B", "rowwise": "lora_A"}
"""The factor of the adapter that gets the style of its base layer."""


def with_adapter_entries(plan: Plan, model: nn.Module, prefix: str) -> Plan:
    """The plan of the adapted model: entries of modules that adapters changed are of their base layer, and of a factor.

    Args:
        plan: of the base model, or of the adapted one, which stays as it is.
        model: the adapted model.
        prefix: the attribute of the base model in it.
    """
    layers = dict(_adapted(model))
    tp = tuple(made for entry in plan.tp for made in _entries(entry, layers.get(join(prefix, entry.pattern))))
    head = tuple(made for entry in plan.head_tp for made in _entries(entry, layers.get(entry.pattern)))
    return replace(plan, tp=tp, head_tp=head)


def _adapted(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, module in model.named_modules():
        if "base_layer" in module._modules:
            yield generic(path), module


def _entries(entry: TpEntry, layer: nn.Module | None) -> Iterator[TpEntry]:
    if layer is None:
        yield entry
        return
    yield replace(entry, pattern=f"{entry.pattern}.base_layer")
    factor = FACTORS.get(entry.style, "")
    for name in getattr(layer, factor, None) or ():
        yield TpEntry(f"{entry.pattern}.{factor}.{name}", entry.style)
