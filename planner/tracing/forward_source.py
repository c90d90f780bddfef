"""How a forward is run for a trace: in the modeling file's own words, with what a trace cannot see for itself noted."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributions import Distribution
from torch.jit._fuser import optimized_execution

from shardproof.planner.tracing.recorder import Recorder


@contextmanager
def noting_constants(recorder: Recorder) -> Iterator[None]:
    """Tell the recorder where the forward enters and leaves `torch.no_grad`: a trace is in one itself, so none can be asked."""
    enter, leave = torch.no_grad.__enter__, torch.no_grad.__exit__

    def entered(self: torch.no_grad) -> None:
        recorder.constant += 1
        enter(self)

    def left(self: torch.no_grad, *error: Any) -> None:
        recorder.constant -= 1
        leave(self, *error)

    torch.no_grad.__enter__, torch.no_grad.__exit__ = entered, left  # type: ignore[method-assign]  # for one forward
    try:
        yield
    finally:
        torch.no_grad.__enter__, torch.no_grad.__exit__ = enter, leave  # type: ignore[method-assign]


_PLAIN: Mapping[str, object] = {"_experts_implementation": "eager", "use_cache": False}
"""Config fields held at these values: fused expert kernels hide the computation, and want real data types; a cache is no part
of it."""


@contextmanager
def plainly(model: nn.Module) -> Iterator[None]:
    """The forward in the modeling file's own words, and without checks of data that is not there."""
    configs = {
        id(config): config for config in (getattr(m, "config", None) for m in model.modules()) if config is not None
    }
    held = [(c, name, getattr(c, name)) for c in configs.values() for name in _PLAIN if hasattr(c, name)]
    checks, validated = os.environ.get(_UNCHECKED), Distribution._validate_args
    for config, name, _ in held:
        setattr(config, name, _PLAIN[name])
    os.environ[_UNCHECKED] = "1"
    Distribution.set_default_validate_args(False)
    try:
        # Scripted functions run op by op: a fused kernel hides its ops, and the fuser knows no meta device.
        with optimized_execution(False), _autocast_on_meta():
            yield
    finally:
        for config, name, value in held:
            setattr(config, name, value)
        Distribution.set_default_validate_args(validated)
        if checks is None:
            del os.environ[_UNCHECKED]
        else:
            os.environ[_UNCHECKED] = checks


@contextmanager
def _autocast_on_meta() -> Iterator[None]:
    """`autocast(x.device.type, enabled=False)` is how modeling code keeps its precision; torch knows no autocast on meta."""
    original = torch.autocast.__init__

    def init(self: torch.autocast, device_type: str, *args: Any, **kwargs: Any) -> None:
        original(self, "cpu" if device_type == "meta" else device_type, *args, **kwargs)

    torch.autocast.__init__ = init  # type: ignore[method-assign]  # for the time of one forward
    try:
        yield
    finally:
        torch.autocast.__init__ = original  # type: ignore[method-assign]


_UNCHECKED = "TRANSFORMERS_DISABLE_TORCH_CHECK"
"""Transformers' own switch for its checks of data (5.23.0, utils/import_utils.py, `torch_compilable_check`)."""
