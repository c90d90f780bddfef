"""The module tree as data, and which layers of a stack are of one kind."""

from collections.abc import Mapping

from torch import Tensor, nn

from planner.ir.graph import Module


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
        )
        for path, module in model.named_modules(remove_duplicate=False)
    )


def layer_kinds(model: nn.Module) -> dict[int, object]:
    """For each member of a `ModuleList` with siblings: what makes it the same kind of layer as another.

    Two members are of one kind where class, parameter shapes and plain attributes agree all the way down. An integer
    attribute that equals the position in every member (a layer index) is not counted.
    """
    kinds: dict[int, object] = {}
    for stack in model.modules():
        if isinstance(stack, nn.ModuleList) and len(stack) > 1:
            described = [_description(member) for member in stack]
            indices = {key for key in described[0] if all(d.get(key) == i for i, d in enumerate(described))}
            for member, description in zip(stack, described, strict=True):
                kept = tuple((key, value) for key, value in description.items() if key not in indices)
                kinds[id(member)] = (id(stack), kept)
    return kinds


def _description(module: nn.Module) -> dict[str, object]:
    found: dict[str, object] = {}
    for path, part in module.named_modules():
        found[f"{path} class"] = type(part).__qualname__
        found |= {f"{path}.{name}": (tuple(t.shape), t.dtype) for name, t in _tensors(part)}
        found |= {f"{path}.{name}": value for name, value in _scalars(part)}
    return found


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]


def _scalars(module: nn.Module) -> list[tuple[str, object]]:
    return [
        (name, value)
        for name, value in sorted(vars(module).items())
        if isinstance(value, bool | int | float | str) and not name.startswith("_")
    ]
