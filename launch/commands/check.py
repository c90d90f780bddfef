"""`plan check MODEL...`: does a model's code keep the contract of each client that should serve or train it?"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from shardproof.launch.commands import completion
from shardproof.launch.commands.cases.run_cases import KnownFindings, attempted, known_findings, named_models, result_of
from shardproof.launch.commands.options import (
    BaselineOption,
    ChangedOption,
    DebugOption,
    FormatOption,
    ModelsArgument,
    OutputOption,
    PythonOption,
    QuietOption,
    SetOption,
    TrustOption,
    WriteBaselineOption,
    settings,
)
from shardproof.launch.commands.read_inputs import ModelReference, read_model
from shardproof.launch.output.console import Progress, only_results_on_stdout, print_result
from shardproof.launch.output.finding_lines import locator
from shardproof.launch.output.result_file import writable, write_result
from shardproof.launch.output.source_excerpts import excerpt
from shardproof.launch.result import EXIT_CODES, CommandResult, MisuseError, ReportFormat
from shardproof.planner.ir.errors import LoadError
from shardproof.verify.report.case_report import CaseReport
from shardproof.verify.report.formats.github import reports_github
from shardproof.verify.report.formats.json import case_json
from shardproof.verify.report.formats.junit import reports_junit
from shardproof.verify.report.formats.sarif import reports_sarif
from shardproof.verify.report.formats.text import known_text
from shardproof.verify.report.report import Report

if TYPE_CHECKING:
    from shardproof.planner.loading.load import LoadedModel

ALL = "transformers,vllm,sglang,tgi,torchtitan"


def check(
    models: ModelsArgument = None,
    backend: Annotated[
        str | None,
        typer.Option(
            metavar="CLIENTS",
            help="Clients, comma-separated; a version as in vllm@0.24.",
            autocompletion=completion.several_readings,
            show_default=ALL,
        ),
    ] = None,
    form: FormatOption = ReportFormat.TEXT,
    set_: SetOption = None,
    trust_remote_code: TrustOption = False,
    output: OutputOption = None,
    baseline: BaselineOption = None,
    write_baseline: WriteBaselineOption = None,
    changed: ChangedOption = False,
    _python: PythonOption = None,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Check the contract with each client: keywords, attention, config, plan in its dialect, processor."""
    progress = Progress(quiet)
    with only_results_on_stdout(debug=debug):
        known = known_findings(baseline, write_baseline)
        asked = named_models(models, changed=changed, plan_file=None, known=baseline)
        clients = tuple(filter(None, (name.strip() for name in (backend if backend is not None else ALL).split(","))))
        if backend is None and asked.project is not None and asked.project.clients:
            clients = asked.project.clients
        if not clients:
            raise MisuseError(f"--backend names no client; give some of {ALL}.")
        writable(output)
        requests = [
            CheckRequest(ModelReference(model, settings(set_), trust_remote_code or asked.trusts(model)), clients)
            for model in asked.models
        ]
        if asked.listed:
            cases = [
                attempted(one, lambda one: check_case(one, progress), model=one.model.reference, asked=one.asked)
                for one in requests
            ]
            result = result_of(known.applied(cases, progress), form)
        else:
            result = check_model(requests[0], form=form, progress=progress, known=known)
    write_result(output, result.text) if output is not None else print_result(result.text)
    raise typer.Exit(result.code)


@dataclass(frozen=True, slots=True)
class CheckRequest:
    """A model, and the clients whose contract it is held against."""

    model: ModelReference
    clients: tuple[str, ...]

    @property
    def asked(self) -> str:
        """The clients in words."""
        return ", ".join(self.clients)


def check_model(
    request: CheckRequest, *, form: ReportFormat, progress: Progress, known: KnownFindings
) -> CommandResult:
    """Check the contract with each client: one level of the report for each.

    Raises:
        MisuseError: there is no client of that name.
    """
    (case,) = known.applied((check_case(request, progress),), progress)
    return CommandResult(_format_case(case, form), case.code)


def check_case(request: CheckRequest, progress: Progress) -> CaseReport:
    """The report of one model.

    Raises:
        MisuseError: there is no client of that name.
    """
    try:
        loaded = read_model(request.model, progress)
    except LoadError:
        if (report := _of_folder(request)) is None:
            raise
        return _case(request, report, None)
    from shardproof.verify.clients.check import check as lint

    with progress.step(f"checking {loaded.title} with {request.asked}"):
        try:
            report = lint(loaded, clients=request.clients)
        except ValueError as error:
            raise MisuseError(str(error)) from error
    return _case(request, report, loaded)


def _case(request: CheckRequest, report: Report, loaded: "LoadedModel | None") -> CaseReport:
    code = EXIT_CODES[report.verdict] if report.findings else 0
    return CaseReport(report.model, request.asked, code, report, locate=locator(request.model.reference, loaded))


def _of_folder(request: CheckRequest) -> Report | None:
    """The findings of a checkpoint whose classes cannot be loaded; None where the folder does not say why."""
    from shardproof.verify.clients.check import check_unloadable

    model = request.model
    try:
        return check_unloadable(model.reference, clients=request.clients, trust_remote_code=model.trust_remote_code)
    except ValueError as error:
        raise MisuseError(str(error)) from error


def _format_case(case: CaseReport, form: ReportFormat) -> str:
    from shardproof.verify.report.formats.contract import contract_html, contract_text

    assert case.report is not None, "an error is told on stderr"
    match form:
        case ReportFormat.JSON:
            return case_json(case)
        case ReportFormat.TEXT:
            return "\n\n".join(filter(None, (contract_text(case.report, case.unknown), known_text(case.old))))
        case ReportFormat.SARIF:
            return reports_sarif([_once(case)])
        case ReportFormat.HTML:
            return contract_html(case.report, excerpt=excerpt)
        case ReportFormat.JUNIT:
            return reports_junit([case])
        case ReportFormat.GITHUB:
            return reports_github([_once(case)])


def _once(case: CaseReport) -> CaseReport:
    """Each finding once, with the names of its clients. With a baseline every client keeps its own."""
    from shardproof.verify.report.formats.contract import named_once

    return replace(case, report=named_once(case.report)) if case.report is not None and case.known is None else case
