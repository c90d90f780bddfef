"""How many features each rank holds, and the head counts that DeepSpeed writes into modules.

Source: DeepSpeed 0.19.8, `module_inject/tp_shard.py` (`AutoTPMeta`, `get_shard_size`): features are dealt in whole key-value
heads, the first ranks one more, but in MLPs, experts and the output head by near-even division. `module_inject/auto_tp.py`
(`update_mp_params`): attributes of modules that hold a sharded layer are dealt by the same rule.
"""

from collections.abc import Collection
from dataclasses import dataclass

from torch import nn

KV_FIELDS = (
    "num_key_value_heads",
    "num_kv_heads",
    "multi_query_group_num",
    "n_head_kv",
    "kv_n_heads",
    "num_attention_heads",
    "n_heads",
    "attention_heads",
)
"""Config fields of the number of key-value heads, in the order in which they are looked for."""
EVEN_NAMES = ("mlp", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
"""Parts of a module's path that keep it from being dealt in heads."""
HEADS = ("lm_head", "embed_out")
"""Names of output heads, which are not dealt in attention heads either."""
DEALT_ATTRIBUTES = (
    "n_heads",
    "inner_dim",
    "num_heads",
    "num_kv",
    "num_attention_heads",
    "num_attn_heads",
    "all_head_size",
    "embed_dim",
    "hidden_size",
    "num_key_value_heads",
    "num_kv_heads",
    "kv_n_heads",
    "d_model",
    "num_attention_heads_per_partition",
    "num_multi_query_groups_per_partition",
    "hidden_size_per_partition",
)
"""Attributes of modules that are divided among the ranks."""


@dataclass(frozen=True, slots=True)
class Deal:
    """The rule for one model at one degree; `kv_heads` is None where its config has no such field."""

    kv_heads: int | None
    degree: int

    def size(self, total: int, name: str, rank: int) -> int:
        """How many of `total` features a rank holds of the module with this path."""
        kv = self.kv_heads
        by_heads = kv and total % kv == 0 and name not in HEADS and not any(part in name for part in EVEN_NAMES)
        if by_heads and kv:
            return total * self._share(kv, rank) // kv
        return self._share(total, rank)

    def sizes(self, total: int, name: str) -> tuple[int, ...]:
        """The same for all ranks."""
        return tuple(self.size(total, name, rank) for rank in range(self.degree))

    def _share(self, count: int, rank: int) -> int:
        return count // self.degree + (rank < count % self.degree)


def deal_of(config: object, degree: int) -> Deal:
    """The rule for a model with this config."""
    text = getattr(config, "text_config", None) or config
    counts = (getattr(text, name, None) for name in KV_FIELDS)
    return Deal(next((count for count in counts if isinstance(count, int)), None), degree)


def deal_attributes(model: nn.Module, sharded: Collection[str], deal: Deal, rank: int) -> bool:
    """Divide the attributes of modules that hold a sharded layer, in place; whether there were any.

    `sharded` are the paths of the layers that the engine replaces.
    """
    changed = False
    for path, module in model.named_modules():
        holds = any(one.startswith(f"{path}.") for one in sharded)
        if not path or not holds or any(p.dim() >= 3 for p in _near(module)):
            continue
        for name in DEALT_ATTRIBUTES:
            value = getattr(module, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                setattr(module, name, deal.size(value, path, rank))
                changed = True
    return changed


def _near(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of a module and of its children: where one has three dims, the engine leaves the attributes whole."""
    return [p for one in (module, *module.children()) for p in one.parameters(recurse=False)]
