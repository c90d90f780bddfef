"""`plan explain [CODE]`."""

from typing import Annotated

import typer

from shardproof.launch.commands import completion
from shardproof.launch.output.console import print_result
from shardproof.launch.result import MisuseError
from shardproof.verify.findings.catalogue import explain as explanation
from shardproof.verify.findings.catalogue import overview
from shardproof.verify.findings.proof_scope import TEXT


def explain(
    code: Annotated[
        str | None,
        typer.Argument(
            metavar="CODE",
            help="A finding, such as TP203, or `proof`; none lists them all.",
            autocompletion=completion.codes,
        ),
    ] = None,
) -> None:
    """Explain a finding: what it is, why it matters, an example, what to use instead."""
    if code is None:
        print_result(overview())
        return
    if code.strip().lower() in ("proof", "proved"):
        print_result(TEXT)
        return
    try:
        print_result(explanation(code))
    except KeyError as error:
        raise MisuseError(str(error.args[0])) from error
