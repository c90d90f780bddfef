"""The transformer models that the installed diffusers has."""

import importlib
import pkgutil
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from types import ModuleType

from benchmarks.diffusion.chosen_sizes import SIZES


def installed() -> str:
    """The version of the installed diffusers; empty where there is none."""
    return version("diffusers") if find_spec("diffusers") is not None else ""


@cache
def transformer_models() -> tuple[str, ...]:
    """References to all classes of `diffusers.models.transformers` that are models, by file and name, each with the chosen
    sizes for which its constructor has no default.

    Raises:
        ImportError: diffusers is not installed.
    """
    base = importlib.import_module("diffusers.models.modeling_utils").ModelMixin
    package = importlib.import_module("diffusers.models.transformers")
    modules = (module.name for module in pkgutil.iter_modules(package.__path__))
    found = (_models(importlib.import_module(f"{package.__name__}.{name}"), base) for name in sorted(modules))
    return tuple(one for names in found for one in names)


def _models(module: ModuleType, base: type) -> list[str]:
    own = (name for name, one in vars(module).items() if _is_model(one, base) and one.__module__ == module.__name__)
    return [f"{module.__name__}:{name} {SIZES.get(name, '')}".strip() for name in sorted(own)]


def _is_model(one: object, base: type) -> bool:
    return isinstance(one, type) and issubclass(one, base)
