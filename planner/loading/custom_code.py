"""Model classes from custom Python: a file, an importable module, or code next to a config.json."""

import ast
import errno
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils.hub import TRANSFORMERS_DYNAMIC_MODULE_NAME

from shardproof.planner.ir.errors import LoadError, innermost, reason
from shardproof.planner.ir.readable_text import nearest, one_line
from shardproof.planner.loading.modules.any_module import adopting, is_factory
from shardproof.planner.loading.version_breaks import version_advice

FILE_PACKAGE = "shardproof_file_"
"""Prefix of the module names of files given by path. No import finds these modules; loading the reference again does."""


def class_from_file(path: Path, class_name: str) -> type[PreTrainedModel]:
    """`file.py:Class`. The file may import its siblings, by `from .sibling` or by `import sibling`."""
    if not path.is_file():
        raise LoadError(f"{path}: there is no such file; give the path of a Python file, then a colon and a class.")
    if not class_name:
        have = ", ".join(_classes_of(path)) or "none"
        raise LoadError(f"{path}: say which class, as in {path.name}:Class; the classes of this file are: {have}.")
    return _model_class(_run_file(path), class_name, where=str(path))


def function_from_file(path: Path, name: str) -> Callable[..., object]:
    """A function of a file that is given by its path.

    Raises:
        LoadError: there is no such file, it raises, or it has no such function.
    """
    if not path.is_file():
        raise LoadError(f"{path}: there is no such file; give the path of a Python file, then a colon and a function.")
    found = getattr(_run_file(path), name, None)
    if not callable(found):
        raise LoadError(f"{path}: there is no function {name} in it; give the name of one.")
    made: Callable[..., object] = found
    return made


def class_from_module(module_name: str, class_name: str) -> type[PreTrainedModel]:
    """`package.module:Class`."""
    try:
        module = _import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
            advice = "install it, or give the path of a Python file"
            raise LoadError(f"{module_name}: there is no such module (no {error.name!r}); {advice}.") from error
        raise LoadError(_failed(module_name, error)) from error
    except (Exception, SystemExit) as error:
        raise LoadError(_failed(module_name, error)) from error
    return _model_class(module, class_name, where=module_name)


def _import_module(name: str) -> ModuleType:
    """Import a module, also from the current folder, which is not on the path of a console script. It is searched last."""
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(here)


def class_from_checkpoint(reference: str, folder: str) -> type:
    """A class that an `auto_map` names (`modeling_x.Class`), loaded by Transformers without the network."""
    file = code_file(reference)
    if reference.rpartition("--")[2].count(".") != 1:
        raise LoadError(f"{folder}: auto_map names {reference}, which is not of the form file.Class; correct it there.")
    try:
        made: type = get_class_from_dynamic_module(reference, folder, local_files_only=True)
    except (Exception, SystemExit) as error:
        if (where := _in_code(error)) is None and (absent := _absent(error, folder, file)):
            raise LoadError(f"{folder}: auto_map names {reference}, and {absent}.") from error
        if where is None and isinstance(error, OSError) and error.errno is not None:
            raise  # a disk that is full, a folder that cannot be read
        raise LoadError(_failed(f"{folder}: {file}", error, line=where)) from error
    return made


def code_file(reference: str) -> str:
    """The file that an `auto_map` value would run: `modeling_x.Class` -> `modeling_x.py`, `repo--x.Class` -> `x.py of repo`."""
    repo, _, dotted = reference.rpartition("--")
    module = dotted.rpartition(".")[0] or dotted
    return one_line(f"{module.replace('.', '/')}.py" + (f" of {repo}" if repo else ""))


def references_of(value: object) -> tuple[str, ...]:
    """The classes that a value of an `auto_map` names: one, or a list such as those of a slow and a fast tokenizer."""
    values = value if isinstance(value, list | tuple) else [value]
    return tuple(each for each in values if isinstance(each, str) and each)


def _in_code(error: BaseException) -> int | None:
    """The line of a checkpoint's own code that an error comes from; None where its code did not run."""
    if isinstance(error, SyntaxError):
        return error.lineno
    frames = traceback.extract_tb(innermost(error).__traceback__)
    lines = (each.lineno for each in reversed(frames) if TRANSFORMERS_DYNAMIC_MODULE_NAME in Path(each.filename).parts)
    return next(lines, None)


def _absent(error: BaseException, folder: str, file: str) -> str:
    """What is not there, a class or a file; empty where an error says nothing of the kind."""
    if isinstance(error, AttributeError):
        return f"{file} has no such class"
    if not isinstance(error, OSError) or error.errno not in (None, errno.ENOENT):
        return ""
    lost = Path(error.filename).name if isinstance(error.filename, str) else file
    if lost != Path(file).name:
        return f"{file} imports {lost}, which is not there; put it beside config.json"
    there = Path(folder).is_dir() and (Path(folder) / file).is_file()
    return "" if there else f"{file} is not there; put it beside config.json"


def _run_file(path: Path) -> ModuleType:
    """Import a file as a module of a package made of its folder; once for each content."""
    given, path = path, path.resolve()
    digest = hashlib.sha256(str(path).encode() + path.read_bytes()).hexdigest()[:12]
    package, name = f"{FILE_PACKAGE}{digest}", f"{FILE_PACKAGE}{digest}.{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    parent = ModuleType(package)
    parent.__path__ = [str(path.parent)]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules |= {package: parent, name: module}
    # Last on the path, and only during this import: a file named like an installed package must not shadow it.
    sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        raise LoadError(_failed(str(given), error, file=path)) from error
    finally:
        sys.path.remove(str(path.parent))
    return module


def _failed(where: str, error: BaseException, *, file: Path | None = None, line: int | None = None) -> str:
    line = line or _line_in(error, file)
    on = f" on line {line}" if line else ""
    return f"{where} raised {reason(error)}{on} when it was imported; mend that first.{version_advice(error)}"


def _line_in(error: BaseException, file: Path | None) -> int | None:
    """The line number of the innermost frame of an error in `file`."""
    if isinstance(error, SyntaxError):
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno for frame in reversed(frames) if file and frame.filename == str(file)), None)


def _classes_of(path: Path) -> list[str]:
    """The names of the classes that a file defines, read from its syntax tree."""
    try:
        tree = ast.parse(path.read_text())
    except (SyntaxError, UnicodeDecodeError):
        return []
    return [node.name for node in tree.body if isinstance(node, ast.ClassDef)]


def _model_class(module: ModuleType, class_name: str, *, where: str) -> type[PreTrainedModel]:
    found = getattr(module, class_name, None)
    if found is None:
        # By name only: reading every attribute of a lazy package such as transformers would import all of it.
        classes = [name for name in dir(module) if not name.startswith("_")]
        raise LoadError(f"{where}: there is no class {class_name}.{nearest(class_name, classes)}")
    if isinstance(found, type) and issubclass(found, PreTrainedConfig):
        raise LoadError(f"{where}: {class_name} is a config class; name the model class that is built from it.")
    if is_factory(found):
        return adopting(found, where=f"{where}:{class_name}", package=FILE_PACKAGE)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise LoadError(
            f"{where}: {class_name} is no class of modules and no function that makes one; name one of these."
        )
    if not isinstance(found.config_class, type):
        raise LoadError(f"{where}: {class_name} has no config_class; set it to its PreTrainedConfig class.")
    return found


def config_class_of(model_class: type[PreTrainedModel]) -> type[PreTrainedConfig]:
    """The config class of a model class, which must have one."""
    assert model_class.config_class is not None
    return model_class.config_class
