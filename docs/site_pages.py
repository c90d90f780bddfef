"""A hook of MkDocs: pages that are made from the code when the site is built. Torch is not loaded."""

import contextlib
import io
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

sys.path.insert(0, str(Path(__file__).parents[1]))

from shardproof.launch.cli import run
from shardproof.verify.findings.catalogue import FAMILIES, rules
from shardproof.verify.report.formats.finding_pages import rule_page, rules_page

SHIM = "https://unpkg.com/iframe-worker/shim"
COMMANDS = ("suggest", "verify", "layout", "check", "explain", "undo", "doctor")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The findings' place in the navigation: one section a family."""
    assert config.nav is not None
    families = [
        {f"{letters}: {family}": [f"rules/{code}.md" for code in rules() if code.startswith(letters)]}
        for letters, family in FAMILIES.items()
    ]
    for entry in config.nav:
        if "Findings" in entry:
            entry["Findings"] = ["rules/index.md", *families]
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the pages."""
    pages = {f"rules/{code}.md": rule_page(rule) for code, rule in rules().items()}
    pages |= {"rules/index.md": rules_page(), "reference/commands.md": _commands()}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def _commands() -> str:
    parts = ["# Commands", "What `plan --help` and `plan COMMAND --help` print."]
    for command in ("", *COMMANDS):
        title = f"## plan {command}".rstrip()
        parts.append(f"{title}\n\n```text\n{_help(command)}\n```")
    return "\n\n".join(parts) + "\n"


def _help(command: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        run([*([command] if command else []), "--help"])
    return printed.getvalue().rstrip()


def on_post_page(output: str, *, page: Page, **_: object) -> str:
    """The search's frame is ours: what the theme would fetch for it is not there without a network."""
    return output.replace(SHIM, get_relative_url("js/search-worker.js", page.url))


def on_post_template(output: str, **_: object) -> str:
    """The page of a wrong address lies at the top."""
    return output.replace(SHIM, "js/search-worker.js")
