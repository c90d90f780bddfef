"""What a forward leaves in its modules (a mask it keeps, a table it grows, a flag) is taken away again after a trace.

Otherwise the next trace of the same model would find it there, and run other ops.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn

_TABLES = (
    *("_buffers", "_parameters", "_modules", "_non_persistent_buffers_set"),
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks"),
)


@dataclass(frozen=True, slots=True)
class ModuleState:
    """The attributes of one module before its forward, and what the plain containers among them held."""

    module: nn.Module
    attributes: dict[str, Any]
    contents: tuple[tuple[Any, Any], ...]

    @classmethod
    def of(cls, module: nn.Module) -> Self:
        """As the module is now."""
        return cls(module, dict(vars(module)), tuple((value, value.copy()) for value in _containers(module)))

    def added(self) -> list[Tensor]:
        """The tensors that the forward has put into attributes of the module."""
        now = vars(self.module).items()
        return [value for name, value in now if isinstance(value, Tensor) and self.attributes.get(name) is not value]

    def restore(self) -> None:
        """Put everything back as it was."""
        vars(self.module).clear()
        vars(self.module).update(self.attributes)
        for container, content in self.contents:
            container.clear()
            container.extend(content) if isinstance(container, list) else container.update(content)


def _containers(module: nn.Module) -> Iterator[Any]:
    """The module's own tables of tensors and hooks, and the lists and dictionaries that modeling code put there."""
    for name, value in vars(module).items():
        if name in _TABLES or (type(value) in (dict, list, set) and not name.startswith("_")):
            yield value
