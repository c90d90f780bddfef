"""What a run is asked, as a file: the cases, and the modules that must be imported before they unpickle."""

import importlib
import importlib.util
import inspect
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path

from transformers.dynamic_module_utils import init_hf_modules

from planner.frontend.code import FILE_PACKAGE
from verify.dynamic.cases import Case


@dataclass(frozen=True, slots=True)
class Request:
    """Cases for one group of `ranks` processes; `timeout` is in seconds, for one case."""

    cases: tuple[Case, ...]
    ranks: int
    timeout: float


def write_request(directory: Path, request: Request) -> None:
    """Into the directory, readable by this user only as the directory is."""
    modules = {name: _file(name) for case in request.cases for name in _modules(case)}
    (directory / "request").write_bytes(pickle.dumps((modules, pickle.dumps(request))))


def read_request(directory: Path) -> Request:
    """As written by the process that started this one; its pickles are no more foreign than its own code."""
    modules, request = pickle.loads((directory / "request").read_bytes())
    init_hf_modules()
    for name, file in modules.items():
        _import(name, file)
    found = pickle.loads(request)
    assert isinstance(found, Request)
    return found


def _modules(case: Case) -> list[str]:
    """Of a file given by path, none: what was loaded reads its reference again when it unpickles."""
    names = (type(case.loaded.config).__module__, case.loaded.model_class.__module__)
    return [name for name in names if not name.startswith(FILE_PACKAGE)]


def _file(name: str) -> str | None:
    module = sys.modules.get(name)
    return inspect.getsourcefile(module) if module is not None else None


def _import(name: str, file: str | None) -> None:
    """By its name, or where no import finds it (a file given by path, a script) from its file, under that name."""
    if name != "__main__":
        try:
            importlib.import_module(name)
            return
        except ImportError:
            if file is None:
                raise
    if file is None:
        raise ImportError(f"module {name} has no file to import on the ranks")
    spec = importlib.util.spec_from_file_location("__mp_main__" if name == "__main__" else name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
