"""`plan check MODEL`: what stands between a model and each client that should serve or train it."""

from typing import Annotated

import typer

from launch.answers import EXIT_CODES, Answer, MisuseError
from launch.console import Progress, only_results_on_stdout, print_result
from launch.model import Model, read_model
from launch.options import (
    DebugOption,
    FormatOption,
    ModelArgument,
    QuietOption,
    ReportFormat,
    SetOption,
    TrustOption,
    settings,
)
from verify.render.json import report_json
from verify.render.text import finding_text
from verify.report import LevelResult, Report

ALL = "transformers,vllm,sglang,tgi,torchtitan"


def check(
    model: ModelArgument,
    backend: Annotated[
        str, typer.Option(metavar="CLIENTS", help="Clients, comma-separated; a version as in vllm@0.24.")
    ] = ALL,
    form: FormatOption = ReportFormat.TEXT,
    set_: SetOption = None,
    trust_remote_code: TrustOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Check the contract with each client: keywords, attention, config, plan in its dialect, processor."""
    with only_results_on_stdout(debug=debug):
        wanted = Model(model, settings(set_), trust_remote_code)
        result = answer(wanted, tuple(filter(None, backend.split(","))), form=form, progress=Progress(quiet))
    print_result(result.text)
    raise typer.Exit(result.code)


def answer(model: Model, backends: tuple[str, ...], *, form: ReportFormat, progress: Progress) -> Answer:
    """One level a client; `MisuseError` on a client that is not known."""
    loaded = read_model(model, progress)
    from verify.clients import check as lint

    with progress.step(f"checking {loaded.title} with {', '.join(backends)}"):
        try:
            report = lint(loaded, backends)
        except ValueError as error:
            raise MisuseError(str(error)) from error
    text = report_json(report) if form is ReportFormat.JSON else _text(report)
    return Answer(text, EXIT_CODES[report.verdict] if report.findings else 0)


def _text(report: Report) -> str:
    """A line for each client, then every finding once, with the clients it is of."""
    clients: dict[str, list[str]] = {}
    for level in report.levels:
        for finding in level.findings:
            text = finding_text(finding)
            clients.setdefault(text, []).append(level.level.removeprefix("contract with "))
    lines = [f"  {level.level.removeprefix('contract with '):<20} {_count(level)}" for level in report.levels]
    blocks = [f"{text}\n{'clients':>10}  {', '.join(names)}" for text, names in clients.items()]
    return "\n\n".join([f"{report.model}\n" + "\n".join(lines), *blocks])


def _count(level: LevelResult) -> str:
    number = len(level.findings)
    return "nothing found" if not number else f"{number} finding{'s' if number > 1 else ''}"
