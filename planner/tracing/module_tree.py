"""The module tree as data, and which module list holds the layers."""

import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import CellType, FunctionType

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from shardproof.planner.ir.graph import Module
from shardproof.planner.transformers_facts.tables import automatic_style, is_inner


def module_table(model: nn.Module, number_of: Mapping[int, int], repeats: Mapping[str, str]) -> tuple[Module, ...]:
    """Every module, in definition order, with its own parameters and integer attributes."""
    return tuple(
        Module(
            path=path,
            kind=type(module).__name__,
            parameters=tuple((name, number_of[id(tensor)]) for name, tensor in module.named_parameters(recurse=False)),
            buffers=tuple((n, number_of[id(t)]) for n, t in module.named_buffers(recurse=False) if id(t) in number_of),
            numbers=tuple((name, value) for name, value in _scalars(module) if type(value) is int),
            bases=tuple(base.__name__ for base in type(module).__mro__ if issubclass(base, nn.Module)),
            repeats=repeats.get(path),
            automatic=automatic_style(model, path),
            inner=is_inner(model, path),
        )
        for path, module in model.named_modules(remove_duplicate=False)
    )


_CACHED = type(lru_cache(lambda: None))
"""What `functools.lru_cache` makes of a function."""


def forget_results(modules: Iterable[nn.Module]) -> None:
    """Empty the caches of functions of these modules' classes, and of functions beside those in their files: what one trace
    computed, the next one has to compute too.
    """
    kinds = {base for module in modules for base in type(module).__mro__}
    files = {kind.__module__ for kind in kinds if kind.__module__.partition(".")[0] not in ("torch", "builtins")}
    beside = [
        value
        for file in files
        for value in tuple(vars(sys.modules[file]).values() if file in sys.modules else ())
        if isinstance(value, FunctionType | _CACHED) and value.__module__ == file
    ]
    for value in (*beside, *(one for kind in kinds for one in vars(kind).values())):
        function = value.__func__ if isinstance(value, staticmethod | classmethod) else value
        held = (cell.cell_contents for cell in getattr(function, "__closure__", None) or () if _is_filled(cell))
        for one in (function, *held):
            if isinstance(one, _CACHED):
                one.cache_clear()


def _is_filled(cell: CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # nothing is in it yet
        return False


def kept_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Tensors that modules keep in attributes which are neither parameters nor buffers, also in lists and dictionaries there."""
    found: list[tuple[str, Tensor]] = []
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if value.__class__ not in _NO_TENSORS and name not in INTERNAL and isinstance(value, _MAY_HOLD):
                leaves = (leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor))
                found += [(f"{path}.{name}[{at}]", leaf) for at, leaf in enumerate(leaves)]
    return found


_NO_TENSORS = frozenset({bool, int, float, str, type(None)})
_MAY_HOLD = (Tensor, list, tuple, dict)


_TABLES = ("_parameters", "_buffers", "_modules")
HOOK_TABLES = (
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks"),
    *("_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)
"""Where `nn.Module` keeps functions that run beside its forward, by a number that torch gives to each."""
INTERNAL = frozenset(
    {
        *(*_TABLES, *HOOK_TABLES, "_non_persistent_buffers_set", "_forward_hooks_with_kwargs", "training"),
        *(
            "_forward_hooks_always_called",
            "_forward_pre_hooks_with_kwargs",
            "_is_full_backward_hook",
            "_is_hf_initialized",
        ),
    }
)
"""Attributes that `nn.Module` and Transformers keep for themselves."""


def _scalars(module: nn.Module) -> list[tuple[str, object]]:
    return [
        (name, value)
        for name, value in sorted(vars(module).items())
        if isinstance(value, bool | int | float | str) and not name.startswith("_")
    ]


def layer_stack(model: nn.Module, paths: Iterable[str]) -> str | None:
    """The path, of these, of the module list with the most parameters; the first of equals, None where none is a list."""
    lists = {path: module for path in paths if isinstance(module := model.get_submodule(path), nn.ModuleList)}
    return max(lists, key=lambda path: sum(value.numel() for value in lists[path].parameters()), default=None)


def members(model: nn.Module, path: str) -> tuple[str, ...]:
    """The modules that run: a list's members, or the module itself."""
    module = model.get_submodule(path)
    if isinstance(module, nn.ModuleList):
        return tuple(f"{path}.{name}" for name, _ in module.named_children())
    return (path,)


def same_member(model: nn.Module, path: str) -> tuple[int, int] | None:
    """The places of the first module that stands twice in a list; None where each stands once."""
    seen: dict[int, int] = {}
    for at, member in enumerate(model.get_submodule(path)._modules.values()):
        first = seen.setdefault(id(member), at)
        if first != at:
            return first, at
    return None
