"""The plan that a class of modules carries itself, in the form of diffusers: `_tp_plan`, keys with at most one `*`.

Source: diffusers 0.42.1, `hooks/tensor_parallel.py`: `_resolve_tp_plan` (a `*` stands for the members of one `ModuleList`, every
other number for itself), `_packed_blocks` (the sizes of a packed style, or an attribute of its linear layer).
"""

from collections.abc import Iterator, Mapping

from torch import nn

from shardproof.planner.ir.plan import Plan, TpEntry, keyed
from shardproof.planner.ir.styles import packed_name
from shardproof.planner.loading.modules.any_module import ModuleConfig

_PACKED = {"PackedColwiseParallel": "colwise", "PackedRowwiseParallel": "rowwise"}
_ATTRIBUTE = {"colwise": "_tp_packed_col_blocks", "rowwise": "_tp_packed_row_blocks"}


def own_plan(model: nn.Module) -> Plan:
    """The plan of the class that was adopted; empty where it has none.

    A key that names no module stays as it is written, and a style that is no text and no packed one by its text: the check of
    the plan's form refuses both.
    """
    written = getattr(model, "own_tp_plan", None)
    if not isinstance(written, Mapping):
        return Plan()
    unlike = unlike_lists(model)
    found: dict[str, str] = {}
    for key, style in written.items():
        paths = list(_paths(model, str(key)))
        for path in paths:
            found.setdefault(keyed(path, unlike), _style(style, model.get_submodule(path)))
        if not paths:
            found[str(key)] = _style(style, model)
    return Plan(tp=tuple(TpEntry(key, style) for key, style in found.items()))


def _paths(model: nn.Module, key: str) -> Iterator[str]:
    """The modules that a key names; none where its `*` stands for no list, or there is more than one."""
    named = dict(model.named_modules(remove_duplicate=False))
    before, star, after = key.partition("*")
    if not star:
        yield from [key] if key in named else []
        return
    members = named.get(before.strip("."))
    if "*" in after or not isinstance(members, nn.ModuleList):
        return
    for number in range(len(members)):
        path = f"{before}{number}{after}"
        if path in named:
            yield path


def _style(style: object, module: nn.Module) -> str:
    kind = _PACKED.get(type(style).__name__)
    if kind is None:
        return str(style)
    blocks = getattr(style, "blocks", None) or getattr(module, _ATTRIBUTE[kind], None) or ()
    return packed_name(kind, [int(size) for size in blocks])


def unlike_lists(model: nn.Module) -> frozenset[str]:
    """The paths of lists that hold modules of several classes, in a model that is no Transformers model."""
    if not isinstance(getattr(model, "config", None), ModuleConfig):
        return frozenset()
    lists = ((path, one) for path, one in model.named_modules() if isinstance(one, nn.ModuleList | nn.Sequential))
    return frozenset(path for path, one in lists if len({type(each) for each in one}) > 1)
