"""The weights of an adapted model, from the files of its base model and of its adapters, under the names that the model has."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from shardproof.planner.ir.errors import LoadError
from shardproof.planner.loading.adapters.adapted_class import Adapter
from shardproof.planner.loading.adapters.adapter_folders import WEIGHTS, as_saved
from shardproof.planner.loading.build import build
from shardproof.planner.loading.load import LoadedModel

_PREFIX = "base_model.model."
_INSIDE = ("base_layer", "original_module")
"""Where PEFT keeps a base module that it has put a layer around (0.21.2, `BaseTunerLayer` and `ModulesToSaveWrapper`)."""


def adapted_state(loaded: LoadedModel) -> dict[str, Tensor]:
    """Every tensor of the base checkpoint and of the adapters.

    Raises:
        LoadError: there are no files to read, or one holds a tensor for which the model has no place.
    """
    model = build(loaded)
    places = [*(name for name, _ in model.named_parameters()), *(name for name, _ in model.named_buffers())]
    state = {_of_base(name, model): value for name, value in _base(loaded).items()}
    for adapter in loaded.adapters:
        state |= _of_adapter(adapter, places)
    return state


def _base(loaded: LoadedModel) -> Mapping[str, Tensor]:
    folder = loaded.checkpoint
    files = sorted(folder.glob("*.safetensors")) if folder is not None and folder.is_dir() else []
    if not files:
        raise LoadError(
            f"{loaded.title}: with --adapter, --weights reads a folder of *.safetensors, and there is none."
        )
    found: dict[str, Tensor] = {}
    for file in files:
        found |= load_file(file)
    return found


def _of_base(name: str, model: nn.Module) -> str:
    """The name of a base model's tensor in the adapted model; another one is the client's to convert."""
    path, _, local = name.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError:
        return name
    inner = next((inside for inside in _INSIDE if inside in module._modules), None)
    return name if inner is None else f"{path}.{inner}.{local}"


def _of_adapter(adapter: Adapter, places: list[str]) -> dict[str, Tensor]:
    file = Path(adapter.folder) / WEIGHTS
    if not adapter.folder or not file.is_file():
        raise LoadError(
            f"--adapter {Path(adapter.folder).name or adapter.name}: there is no {WEIGHTS} to run; drop --weights."
        )
    own = {as_saved(name, adapter.name): name for name in places if f".{adapter.name}." in f"{name}."}
    found = {}
    for name, value in load_file(file).items():
        path = name.removeprefix(_PREFIX)
        place = own.get(path) or own.get(f"{path}.weight")
        if place is None:
            raise LoadError(f"--adapter {Path(adapter.folder).name}: the model has no place for its {path}.")
        found[place] = value
    return found
