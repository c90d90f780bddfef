"""What a forward leaves in the model itself: statistics of a batch norm, a count of calls, a memory."""

import torch
from torch import nn

from shardproof.planner.tracing.session import ModuleState


class HeldState:
    """Buffers and attributes of all modules at one moment, so that every question finds the model as the first one does.

    The single-device model and the ranks are not asked equally often, so what one question leaves would change the next answer.
    """

    def __init__(self, model: nn.Module) -> None:
        self._buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
        self._modules = [ModuleState.of(module) for module in model.modules()]
        self._parameters = list(model.parameters())
        self._versions = self._now()

    def restore(self) -> None:
        """Put everything back. A model that has rescaled its parameters keeps the attributes that say so."""
        if self._now() == self._versions:
            for module in self._modules:
                if module.changed():
                    module.restore()
        with torch.no_grad():
            for buffer, before in self._buffers:
                if buffer.shape == before.shape:
                    buffer.copy_(before)

    def _now(self) -> list[int]:
        return [parameter._version for parameter in self._parameters]
