"""The pages of the site: every block of every page runs, or is parsed where it needs what is not here.

`python` runs, one namespace a page; a block with `title="FILE"` is written to that file. A `$` command runs in a process forked
from this one, and prints what is shown under it. In a `bash` block the options of each `plan` command are parsed, and nothing is
run.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer
import typer.core
import yaml
from mkdocs.commands.build import build
from mkdocs.config import load_config

import shardproof.launch.cli
from tests.forked import run_command, run_tests
from tests.gate import PATH
from tests.readme import README, console_sessions, matches

DOCS = README.parent / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
_FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    language: str
    title: str
    text: str


def blocks(text: str) -> Iterator[Block]:
    for found in _FENCE.finditer(text):
        yield Block(found[1], found[2] or "", found[3])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for one page; what Python imports from it is forgotten again, and ranks find this project."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("PYTHONPATH", f"{PATH}{os.pathsep}{tmp_path}")
    monkeypatch.syspath_prepend(tmp_path)
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("page", [page for page in PAGES if "```" in (DOCS / page).read_text()])
def test_the_blocks_of_a_page(page: str, here: Path) -> None:
    namespace: dict[str, object] = {"__name__": "page"}
    for block in blocks((DOCS / page).read_text()):
        RUN[block.language](block, here, namespace)


def _python(block: Block, here: Path, namespace: dict[str, object]) -> None:
    code = compile(block.text, block.title or "page", "exec")
    if block.title:
        (here / block.title).write_text(block.text)
    elif "def test_" not in block.text:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(code, namespace)
    if "def test_" in block.text:
        _tests(block, here)


def _tests(block: Block, here: Path) -> None:
    """Tests that a page shows, run by pytest with the plugin."""
    file = here / (block.title or "test_page.py")
    file.write_text(block.text)
    ended = run_tests(file.name, here=here)
    assert ended.code == 0, ended


def _console(block: Block, here: Path, namespace: dict[str, object]) -> None:
    wanted = int(block.title.removeprefix("exit code ") or 0)
    for command, shown in console_sessions(f"```console\n{block.text}```"):
        words = shlex.split(command)
        assert words[0] == "plan", command
        ended = run_command(*words[1:])
        assert ended.code == wanted, ended
        assert matches(shown, ended.out), ended


def _bash(block: Block, here: Path, namespace: dict[str, object]) -> None:
    lines = [line for part in block.text.splitlines() for line in part.split(" && ")]
    for words in map(shlex.split, lines):
        if "plan" in words:
            name, *given = words[words.index("plan") + 1 : words.index(">") if ">" in words else None]
            assert parsed(name, given)


def parsed(name: str, given: list[str]) -> bool:
    """Whether a command takes these arguments; raises typer's own error where not."""
    group = typer.main.get_command(shardproof.launch.cli.app)
    assert isinstance(group, typer.core.TyperGroup)
    return group.commands[name].make_context(name, given) is not None


def _json(block: Block, here: Path, namespace: dict[str, object]) -> None:
    json.loads(block.text)
    if block.title:
        (here / block.title).write_text(block.text)


def _yaml(block: Block, here: Path, namespace: dict[str, object]) -> None:
    assert yaml.safe_load(block.text)


def _text(block: Block, here: Path, namespace: dict[str, object]) -> None:
    """Nothing to run: a drawing in letters, or what a tool prints."""


RUN: dict[str, Callable[[Block, Path, dict[str, object]], None]] = {
    "python": _python,
    "console": _console,
    "bash": _bash,
    "json": _json,
    "yaml": _yaml,
    "text": _text,
}


def test_the_site_builds_and_fetches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strict: a link to a page or a heading that is not there ends the build."""
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        build(load_config(str(README.parent / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True))
    made = {page.relative_to(tmp_path / "site").as_posix() for page in (tmp_path / "site").rglob("*.html")}
    assert {"index.html", "rules/TP203.html", "reference/commands.html", "how-to/ci.html"} <= made
    fetched = re.compile(r'(?:src|<link[^>]+href)="?(https?:[^" >]+)')
    for page in made:
        assert not fetched.findall((tmp_path / "site" / page).read_text()), page
    if BROWSER is not None:
        assert "matching documents" in _searched(
            BROWSER, tmp_path / "site" / "how-to" / "ci.html", tmp_path / "profile"
        )


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def _searched(browser: str, page: Path, profile: Path) -> str:
    """What a page shows that was opened from the disk, once it has searched."""
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={profile}",
        "--virtual-time-budget=20000",
    ]
    asked = [browser, *options, "--dump-dom", f"{page.as_uri()}?q=rowwise"]
    return subprocess.run(asked, capture_output=True, text=True, timeout=120, check=True).stdout
