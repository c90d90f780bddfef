"""`plan port FILE ...`."""

from pathlib import Path
from typing import Annotated

import typer

from shardproof.launch.authoring.source_files import diff, display_path, rewrite
from shardproof.launch.output.console import print_result, say
from shardproof.launch.result import MisuseError


def port(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Modeling files written for Transformers 4.")],
    write: Annotated[bool, typer.Option("--write", help="Change the files too; `plan undo` takes it back.")] = False,
) -> None:
    """Show, as a diff, the edits that Transformers 5 asks of code written for version 4, where they need no judgement."""
    from shardproof.launch.authoring.ported_code import ported

    before, after = {}, {}
    for file in files:
        before[file], text = _read(file)
        try:
            made = ported(text)
        except SyntaxError as error:
            raise MisuseError(f"{display_path(file)} is no Python code: line {error.lineno} cannot be read.") from error
        except (RecursionError, MemoryError, ValueError) as error:
            raise MisuseError(
                f"{display_path(file)} is no Python code that can be read ({type(error).__name__})."
            ) from error
        after[file] = made.text.encode()
        for line, words in made.edits:
            say(f"{display_path(file)}:{line}: {words}")
        if not made.edits:
            say(f"{display_path(file)}: nothing to port")
    changed = {file: content for file, content in before.items() if after[file] != content}
    if write:
        rewrite(changed, {file: after[file] for file in changed})
    if changed:
        print_result(diff(changed, after).rstrip("\n"))


LARGEST = 1 << 24
"""Bytes of the largest file of code that is read."""


def _read(file: Path) -> tuple[bytes, str]:
    """The content of a file of code, and its text."""
    name = file.name or str(file)
    if not file.is_file():
        raise MisuseError(f"{name} is no file." if file.exists() else f"{name}: there is no such file.")
    try:
        with file.open("rb") as stream:
            content = stream.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise MisuseError(f"{name} is too large for a file of code.")
        return content, content.decode()
    except OSError as error:
        raise MisuseError(f"{name} cannot be read ({type(error).__name__}).") from error
    except UnicodeDecodeError as error:
        raise MisuseError(f"{name} is no text in UTF-8.") from error
