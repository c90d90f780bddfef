"""The attention and the experts implementation that a caller asks for, instead of those that the config names.

Transformers registers both by name (5.23.0, `modeling_utils.py`, `AttentionInterface`; `integrations/moe.py`,
`ExpertsInterface`), and `from_pretrained(..., attn_implementation=, experts_implementation=)` chooses among them.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

_MARK = "_asked_implementations"


@dataclass(frozen=True, slots=True)
class Implementations:
    """The names that were asked for; None where the config decides."""

    attention: str | None = None
    experts: str | None = None

    def keywords(self) -> dict[str, Any]:
        """The arguments of `from_pretrained` and `_from_config`."""
        given = {"attn_implementation": self.attention, "experts_implementation": self.experts}
        return {name: value for name, value in given.items() if value is not None}

    def told(self) -> tuple[str, ...]:
        """What a scope says of them."""
        given = {"attention": self.attention, "experts": self.experts}
        return tuple(f"{what}: {name} (asked)" for what, name in given.items() if name is not None)


NOTHING_ASKED = Implementations()


def asked_of(model: nn.Module) -> Implementations:
    """What was asked for a model that was built or loaded."""
    found = vars(model).get(_MARK, NOTHING_ASKED)
    assert isinstance(found, Implementations)
    return found


def mark(model: nn.Module, asked: Implementations) -> None:
    """Note on a model what was asked for it."""
    if asked != NOTHING_ASKED:
        vars(model)[_MARK] = asked


def kernel_of_experts(model: nn.Module) -> str:
    """The experts implementation that Transformers takes for a model where none is asked for; empty where that is the modeling
    file's own code.
    """
    may_change = getattr(model, "_can_set_experts_implementation", None)
    if asked_of(model).experts is not None or may_change is None or not may_change():
        return ""
    name = getattr(getattr(model, "config", None), "_experts_implementation", None)
    return name if isinstance(name, str) and name != "eager" else ""
