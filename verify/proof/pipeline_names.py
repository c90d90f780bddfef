"""Are the names that a pipeline plan lists used by the code that calls the module?

No client reads these names today, so a wrong one changes no result and is a warning.
"""

from collections.abc import Iterator, Mapping
from inspect import signature, unwrap
from types import CodeType, FunctionType

from torch import nn
from transformers import PreTrainedModel

from shardproof.planner.ir.findings import Finding
from shardproof.planner.ir.plan import PpEntry
from shardproof.verify.findings import pp303


def check_names(modules: Mapping[str, nn.Module], entries: list[tuple[str, PpEntry]]) -> Iterator[Finding]:
    """A warning for each entry with a name that is neither a parameter of the module nor used by the code that calls it."""
    for path, entry in entries:
        owner = modules[path.rpartition(".")[0]]
        known = _parameters(modules[path]) | words(type(owner))
        unknown = [name for name in (*entry.inputs, *entry.outputs) if name not in known]
        if unknown:
            yield pp303.unknown_name(path, type(owner).__name__, unknown)


def words(owner: type[nn.Module]) -> frozenset[str]:
    """Names of variables, parameters and attributes in the methods of a class and of its bases that are models."""
    kinds = [kind for kind in owner.__mro__ if issubclass(kind, nn.Module) and kind not in (nn.Module, PreTrainedModel)]
    methods = [unwrap(member) for kind in kinds for member in vars(kind).values() if isinstance(member, FunctionType)]
    return frozenset(name for method in methods for name in _named(method.__code__))


def _named(code: CodeType) -> Iterator[str]:
    """Names in compiled code; keywords of calls are among its constants."""
    yield from (*code.co_varnames, *code.co_names, *code.co_cellvars, *code.co_freevars)
    for constant in code.co_consts:
        match constant:
            case CodeType():
                yield from _named(constant)
            case tuple():
                yield from (item for item in constant if isinstance(item, str))


def _parameters(module: nn.Module) -> frozenset[str]:
    """The parameters of a module's forward, or of the forwards of a list's members."""
    members = list(module) if isinstance(module, nn.ModuleList) else [module]
    return frozenset(
        name for kind in {type(member) for member in members} for name in signature(kind.forward).parameters
    )
