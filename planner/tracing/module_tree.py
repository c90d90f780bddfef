"""The module tree as data, and which layers of a stack are of one kind."""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from shardproof.planner.ir.graph import Module


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


def kept_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Tensors that modules keep in attributes which are neither parameters nor buffers, also in lists and dictionaries there."""
    found: list[tuple[str, Tensor]] = []
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor | list | tuple | dict) and name not in _TABLES:
                leaves = (leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor))
                found += [(f"{path}.{name}[{at}]", leaf) for at, leaf in enumerate(leaves)]
    return found


_TABLES = ("_parameters", "_buffers", "_modules")


def layer_kinds(model: nn.Module) -> dict[int, tuple[int, object]]:
    """For each member of a `ModuleList` with siblings: its position, and what makes it the same kind of layer as another.

    Two members are of one kind where class, parameter shapes and plain attributes agree all the way down. An integer
    attribute that counts the members (a layer index) only has to be there.
    """
    kinds: dict[int, tuple[int, object]] = {}
    for stack in model.modules():
        if isinstance(stack, nn.ModuleList) and len(stack) > 1:
            described = [_description(member) for member in stack]
            names = {name for description in described for name in description}
            indices = {name for name in names if _counts(name, described)}
            for position, (member, description) in enumerate(zip(stack, described, strict=True)):
                kept = tuple((key, None if key in indices else value) for key, value in description.items())
                kinds[id(member)] = (position, (id(stack), kept))
    return kinds


def _counts(name: str, described: Sequence[Mapping[str, object]]) -> bool:
    """Whether an attribute is a member's position, grows by the same step from each position to the next, or is a factor that
    no two members share.
    """
    factors = [number for each in described if type(number := each.get(name)) is float]
    if len(factors) == len(described) > 2 and len(set(factors)) == len(factors):
        return min(factors) > 0 or max(factors) < 0
    found = [(at, number) for at, each in enumerate(described) if type(number := each.get(name)) is int]
    if len(found) < sum(name in each for each in described):
        return False
    if all(number == at for at, number in found):
        return True
    (x, first), (y, last) = found[0], found[-1]
    return (
        len(found) > 2 and first != last and all((n - first) * (y - x) == (last - first) * (at - x) for at, n in found)
    )


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
