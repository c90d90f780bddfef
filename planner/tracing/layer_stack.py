"""Which module list holds the layers: of several, the one with most of the parameters."""

from collections.abc import Iterable

from torch import nn


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
