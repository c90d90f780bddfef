"""`plan check MODEL`: does the model's code keep the contract of each client that should serve or train it?"""

from typing import Annotated

import typer

from shardproof.launch.commands import completion
from shardproof.launch.commands.options import (
    DebugOption,
    FormatOption,
    ModelArgument,
    QuietOption,
    SetOption,
    TrustOption,
    settings,
)
from shardproof.launch.commands.read_inputs import ModelReference, read_model
from shardproof.launch.output.console import Progress, only_results_on_stdout, print_result
from shardproof.launch.output.source_excerpts import excerpt, relative_path
from shardproof.launch.result import EXIT_CODES, CommandResult, MisuseError, ReportFormat
from shardproof.planner.ir.errors import LoadError
from shardproof.verify.report.formats.json import report_json
from shardproof.verify.report.formats.sarif import report_sarif
from shardproof.verify.report.report import Report

ALL = "transformers,vllm,sglang,tgi,torchtitan"


def check(
    model: ModelArgument,
    backend: Annotated[
        str,
        typer.Option(
            metavar="CLIENTS",
            help="Clients, comma-separated; a version as in vllm@0.24.",
            autocompletion=completion.several_readings,
        ),
    ] = ALL,
    form: FormatOption = ReportFormat.TEXT,
    set_: SetOption = None,
    trust_remote_code: TrustOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Check the contract with each client: keywords, attention, config, plan in its dialect, processor."""
    with only_results_on_stdout(debug=debug):
        wanted = ModelReference(model, settings(set_), trust_remote_code)
        clients = tuple(filter(None, (name.strip() for name in backend.split(","))))
        if not clients:
            raise MisuseError(f"--backend names no client; give some of {ALL}.")
        result = check_model(wanted, clients, form=form, progress=Progress(quiet))
    print_result(result.text)
    raise typer.Exit(result.code)


def check_model(
    model: ModelReference, backends: tuple[str, ...], *, form: ReportFormat, progress: Progress
) -> CommandResult:
    """Check the contract with each client: one level of the report for each.

    Raises:
        MisuseError: there is no client of that name.
    """
    try:
        loaded = read_model(model, progress)
    except LoadError:
        if (result := _of_folder(model, backends, form)) is None:
            raise
        return result
    from shardproof.verify.clients.check import check as lint

    with progress.step(f"checking {loaded.title} with {', '.join(backends)}"):
        try:
            report = lint(loaded, clients=backends)
        except ValueError as error:
            raise MisuseError(str(error)) from error
    return CommandResult(_format_report(report, form), EXIT_CODES[report.verdict] if report.findings else 0)


def _of_folder(model: ModelReference, backends: tuple[str, ...], form: ReportFormat) -> CommandResult | None:
    """The findings of a checkpoint whose classes cannot be loaded; None where the folder does not say why."""
    from shardproof.verify.clients.check import check_unloadable

    try:
        report = check_unloadable(model.reference, clients=backends, trust_remote_code=model.trust_remote_code)
    except ValueError as error:
        raise MisuseError(str(error)) from error
    return None if report is None else CommandResult(_format_report(report, form), EXIT_CODES[report.verdict])


def _format_report(report: Report, form: ReportFormat) -> str:
    from shardproof.verify.report.formats.contract import contract_html, contract_text, named_once

    match form:
        case ReportFormat.JSON:
            return report_json(report)
        case ReportFormat.TEXT:
            return contract_text(report)
        case ReportFormat.SARIF:
            return report_sarif(named_once(report), relative_path=relative_path)
        case ReportFormat.HTML:
            return contract_html(report, excerpt=excerpt)
