"""The files that ranks read: how the group is started, the cases, and the modules that the cases need to unpickle."""

import importlib
import importlib.util
import inspect
import pickle
import sys
from dataclasses import dataclass, field
from pathlib import Path

from transformers.dynamic_module_utils import init_hf_modules

from shardproof.launch.ranks.job import Nodes
from shardproof.planner.ir.errors import ArgumentError, LoadError, reason
from shardproof.planner.loading.custom_code import FILE_PACKAGE
from shardproof.verify.stages.case import Case


@dataclass(frozen=True, slots=True)
class Start:
    """One group of `ranks` processes, the same number on every node; `timeout` is in seconds, for one case."""

    ranks: int
    timeout: float
    nodes: Nodes = field(default_factory=Nodes)

    def __post_init__(self) -> None:
        if self.ranks % self.nodes.count:
            raise ArgumentError(f"{self.ranks} ranks do not divide over {self.nodes.count} nodes.")


@dataclass(frozen=True, slots=True)
class Request:
    """Cases to be run one after the other; `first` is the number of the first of them, counted from the start of the group."""

    cases: tuple[Case, ...]
    first: int


def write_start(directory: Path, start: Start) -> None:
    """Write how a group is started into its directory, which only this user can read."""
    (directory / "start").write_bytes(pickle.dumps(start))


def read_start(directory: Path) -> Start:
    """Read what `write_start` wrote. The pickle is trusted: the process that started this one wrote it."""
    found = pickle.loads((directory / "start").read_bytes())
    assert isinstance(found, Start)
    return found


def write_request(directory: Path, number: int, request: Request) -> None:
    """Write the `number`th request of a group, atomically, since the ranks wait for it.

    Raises:
        LoadError: another process cannot import the classes of a case.
    """
    modules = {name: _file(name) for case in request.cases for name in _modules(case)}
    part = directory / f"request-{number}.part"
    try:
        written = pickle.dumps(request)
    except (pickle.PicklingError, AttributeError) as error:
        advice = "give the classes of the model and of its config their own names in their module"
        raise LoadError(f"the ranks cannot load this model by themselves ({reason(error)}); {advice}.") from error
    part.write_bytes(pickle.dumps((modules, written)))
    part.rename(part.with_suffix(""))


def read_request(directory: Path, number: int) -> Request | None:
    """The `number`th request, or None as long as there is none."""
    path = directory / f"request-{number}"
    if not path.exists():
        return None
    modules, request = pickle.loads(path.read_bytes())
    init_hf_modules()
    for name, file in modules.items():
        _import(name, file)
    found = pickle.loads(request)
    assert isinstance(found, Request)
    return found


def _modules(case: Case) -> list[str]:
    """The modules of the case's classes; none for a file given by path, since a loaded model reads its reference again when it
    unpickles."""
    kinds = (type(case.loaded.config), case.loaded.base_class, type(case.staging.faults))
    names = [kind.__module__ for kind in kinds]
    return [name for name in names if not name.startswith(FILE_PACKAGE)]


def _file(name: str) -> str | None:
    module = sys.modules.get(name)
    return inspect.getsourcefile(module) if module is not None else None


def _import(name: str, file: str | None) -> None:
    """Import a module by its name where that finds the same file, else from its file, under that name.

    A file given by path and a script are found by no name; another module of that name may lie on the path.
    """
    if name != "__main__" and (file is None or _is_found_by_name(name, Path(file))):
        importlib.import_module(name)
        return
    if file is None:
        raise ImportError(f"module {name} has no file to import on the ranks")
    spec = importlib.util.spec_from_file_location("__mp_main__" if name == "__main__" else name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def _is_found_by_name(name: str, file: Path) -> bool:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None and Path(spec.origin).resolve() == file.resolve()
