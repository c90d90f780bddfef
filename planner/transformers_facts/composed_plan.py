"""A plan as the library composes it from the plans of a model and of the models in it.

Each model in a model composes its plan by itself, and its parent puts that over its own (`distributed/mixin.py`). An inner model
that has its parent's config (the encoder of an encoder-decoder) reads all keys of that config as its own. So `layers.*.fc1`
shards layers of the encoder and of the decoder. Its table `embed_tokens`, which some versions shard without an entry, hears only
the key `embed_tokens`: an entry under the whole name is overridden.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shardproof.planner.ir.plan import join, owner_of

TABLE = "embed_tokens"
"""The one attribute name that the library looks for."""


@dataclass(frozen=True, slots=True)
class PlanReader:
    """A model in the head model: its path, the style that its table gets without an entry (empty without such a table), and
    whether it is an inner one that reads the base model's config.
    """

    path: str
    table: str = ""
    inner: bool = False


def composed(styles: Mapping[str, str], readers: Sequence[PlanReader], base_prefix: str) -> dict[str, str]:
    """The plan with what inner models read of it and with the styles of tables; keys as the head model sees them."""
    planned = {owner_of(key, ("", *(reader.path for reader in readers))) for key in styles}
    found = {join(one.path, TABLE): one.table for one in readers if one.table and not one.inner and one.path in planned}
    found |= styles
    read = {of_base(key, base_prefix): style for key, style in styles.items()}
    read.pop("", None)
    for one in readers:
        if one.inner and read:
            own = {TABLE: one.table, **read} if one.table else read
            found |= {join(one.path, key): style for key, style in own.items()}
    return found


def of_base(key: str, base_prefix: str) -> str:
    """A key as the base model's config has it; empty for a key of the head."""
    if not base_prefix:
        return key
    return key.removeprefix(f"{base_prefix}.") if key.startswith(f"{base_prefix}.") else ""


def key_of_table(reader: PlanReader, base_prefix: str) -> str:
    """The key under which an entry for the reader's table is heard."""
    return join(base_prefix if reader.inner else reader.path, TABLE)
