"""Which entries hold for the embedding tables that Transformers shards without one.

Each model in a model composes its plan by itself, and its parent puts that over its own (`distributed/mixin.py`). So the table of
an inner model with its parent's config (the encoder of an encoder-decoder) hears only the key `embed_tokens` of that config: an
entry under its whole name is overridden.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shardproof.planner.ir.plan import join, owner_of

TABLE = "embed_tokens"
"""The one attribute name that the library looks for."""


@dataclass(frozen=True, slots=True)
class TableOwner:
    """A model in the head model: its path, the style that its table gets without an entry (empty without such a table), and
    whether it is an inner one.
    """

    path: str
    style: str = ""
    inner: bool = False


def with_tables(styles: Mapping[str, str], owners: Sequence[TableOwner], base_prefix: str) -> dict[str, str]:
    """A plan with the styles of tables as the library composes them; keys as the head model sees them."""
    planned = {owner_of(key, ("", *(owner.path for owner in owners))) for key in styles}
    shared = join(base_prefix, TABLE)
    read = any(owner_of(key, ("", base_prefix)) == base_prefix for key in styles)
    outer = {join(o.path, TABLE): o.style for o in owners if o.style and not o.inner and o.path in planned}
    inner = {join(o.path, TABLE): styles.get(shared, o.style) for o in owners if o.style and o.inner and read}
    return {**outer, **styles, **inner}


def key_of_table(owner: TableOwner, base_prefix: str) -> str:
    """The key under which an entry for the owner's table is heard."""
    return join(base_prefix if owner.inner else owner.path, TABLE)
