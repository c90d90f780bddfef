"""Does a model's `_init_weights` combine a sharded parameter with plain tensors? The client calls it after loading.

For weights that were loaded, the client skips the writes of `_init_weights` but not its computations. Sharded parameters
are then distributed tensors, and an op on a distributed and a plain tensor raises (transformers 5.23.0, `modeling_utils.py`,
`_initialize_weights`). Custom code whose weights were all loaded is not called.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from transformers import PreTrainedModel

from shardproof.planner.ir.findings import Source
from shardproof.planner.ir.placement import Shard
from shardproof.planner.ir.plan import generic
from shardproof.planner.loading.source_lines import SourceFinder
from shardproof.planner.propagation.assign import Assigned


class UnloadableError(ValueError):
    """A sharded parameter that `_init_weights` combines with plain tensors."""

    def __init__(self, module: str, entry: str, source: Source | None) -> None:
        where = f" ({source})" if source is not None else ""
        super().__init__(f"_init_weights combines a parameter of {module} with tensors that are not distributed{where}")
        self.module, self.entry, self.source = module, entry, source


class MixedError(RuntimeError):
    """An op on a distributed and a plain tensor."""


def check_initial(model: nn.Module, assigned: Assigned) -> None:
    """Call `_init_weights` as the client does, for one module of every pattern that holds sharded parameters itself.

    Raises:
        UnloadableError: `_init_weights` combines a sharded parameter with a plain tensor.
    """
    for path, entry, sharded in _holders(model, assigned):
        module = model.get_submodule(path)
        owner = _owner(model, path)
        if owner is None or owner.is_custom_code():
            continue
        try:
            with _Loaded(module), _Distributed(sharded):
                owner._init_weights(module)
        except MixedError as error:
            raise UnloadableError(path, entry, SourceFinder(owner).of_traceback(error)) from error


def _holders(model: nn.Module, assigned: Assigned) -> Iterator[tuple[str, str, list[Tensor]]]:
    """For the first module of every pattern that is not a plain layer: its path, an entry, and its sharded parameters."""
    found: dict[str, tuple[str, str, list[Tensor]]] = {}
    for name, (placement, entry) in assigned.parameters.items():
        path, _, local = name.rpartition(".")
        if isinstance(placement, Shard) and found.setdefault(generic(path), (path, entry, []))[0] == path:
            module = model.get_submodule(path)
            if not isinstance(module, nn.Linear | nn.Embedding):
                found[generic(path)][2].append(module.get_parameter(local))
    return (each for each in found.values() if each[2])


def _owner(model: nn.Module, path: str) -> PreTrainedModel | None:
    """The innermost model that contains a module, whose `_init_weights` is called with the module."""
    parts = path.split(".") if path else []
    around = (model.get_submodule(".".join(parts[:count])) for count in range(len(parts), -1, -1))
    return next((module for module in around if isinstance(module, PreTrainedModel)), None)


class _Loaded:
    """A context in which a module's parameters carry the client's mark for loaded weights."""

    def __init__(self, module: nn.Module) -> None:
        self.marked = [p for p in module.parameters() if not hasattr(p, _MARK)]

    def __enter__(self) -> None:
        for parameter in self.marked:
            setattr(parameter, _MARK, True)

    def __exit__(self, *_: object) -> None:
        for parameter in self.marked:
            delattr(parameter, _MARK)


_MARK = "_is_hf_initialized"


class _Distributed(TorchDispatchMode):
    """Follows values computed from distributed tensors, and raises where an op also has a plain tensor, 0-dim ones excepted."""

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.kept = {id(tensor): tensor for tensor in tensors}

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        given = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        distributed = [tensor for tensor in given if id(tensor) in self.kept]
        if distributed and any(id(tensor) not in self.kept and tensor.dim() > 0 for tensor in given):
            raise MixedError(f"{func} is given distributed and plain tensors")
        made = func(*args, **kwargs)
        if distributed:
            self.kept |= {id(leaf): leaf for leaf in tree_flatten(made)[0] if isinstance(leaf, Tensor)}
        return made
