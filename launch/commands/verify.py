"""`plan verify MODEL...`: prove plans, and run them on real ranks."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardproof.launch.clients.other_python import VLLM_PYTHON, run_in_client
from shardproof.launch.commands.cases.levels import run_levels
from shardproof.launch.commands.cases.request import Level, RunLayout, VerifyRequest, nodes_of, run_layout
from shardproof.launch.commands.cases.run_cases import (
    NOTHING_KNOWN,
    KnownFindings,
    NamedModels,
    attempted,
    known_findings,
    named_models,
    result_of,
)
from shardproof.launch.commands.options import (
    AdapterOption,
    AttentionOption,
    BaselineOption,
    ChangedOption,
    DebugOption,
    ExpertsOption,
    FormatOption,
    ForOption,
    InputOption,
    InputsOption,
    ModelsArgument,
    OutputOption,
    PythonOption,
    QuietOption,
    SetOption,
    TrustOption,
    WriteBaselineOption,
    degree,
    inputs_given,
    settings,
    several,
)
from shardproof.launch.commands.read_inputs import STDIN, ModelReference, read_model, read_plan
from shardproof.launch.output.console import Progress, only_results_on_stdout, print_result, say
from shardproof.launch.output.finding_lines import locator
from shardproof.launch.output.report_formats import Drawing, format_case
from shardproof.launch.output.result_file import writable, write_result
from shardproof.launch.ranks.job import is_first_rank, surrounding
from shardproof.launch.result import EXIT_CODES, CommandResult, MisuseError, ReportFormat
from shardproof.launch.saved_shares import shares_of
from shardproof.planner.ir.degrees import Degrees
from shardproof.planner.ir.explanation import Explanation
from shardproof.planner.ir.findings import Verdict
from shardproof.planner.ir.plan import Plan
from shardproof.verify.report.case_report import CaseReport
from shardproof.verify.report.environment import environment
from shardproof.verify.report.report import LevelResult, Report

if TYPE_CHECKING:
    from torch import nn

    from shardproof.planner.loading.load import LoadedModel


PlanOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="A plan file (JSON); - is standard input.", show_default="the plan that the model carries"
    ),
]
TpOption = Annotated[
    int | None, typer.Option(parser=degree, metavar="N", help="Tensor-parallel degree.", show_default="2")
]
PpOption = Annotated[int | None, typer.Option(parser=degree, metavar="N", help="Pipeline stages.", show_default="1")]
EpOption = Annotated[
    int | None,
    typer.Option(parser=degree, metavar="N", help="Ranks that share the experts: all of --tp.", show_default="1"),
]
LevelOption = Annotated[
    list[Level] | None,
    typer.Option(help="Level of verification; repeatable.", show_default="proof, then run unless it is refuted"),
]
TimeoutOption = Annotated[
    float, typer.Option(min=1, metavar="SECONDS", help="Time limit of a run; its ranks are ended after it.")
]
WeightsOption = Annotated[
    bool, typer.Option("--weights", help="Run the checkpoint's own weights in their dtype, instead of a twin.")
]
TrainOption = Annotated[
    bool,
    typer.Option("--train", help="Also what a trainer does: clipping, AdamW, dropout, saving, resuming (level train)."),
]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="An assumption of the proof is undecided (exit code 3), instead of told.")
]
NodesOption = Annotated[int, typer.Option(min=1, metavar="N", help="Machines that run this command together.")]
NodeRankOption = Annotated[int, typer.Option(min=0, metavar="N", help="Which of them this is, from 0.")]
EndpointOption = Annotated[
    str,
    typer.Option(
        metavar="HOST:PORT", help="Rendezvous of the machines: a port of the first one.", show_default="this machine"
    ),
]
ClientPythonOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The interpreter of the client's environment, for --level client.",
        show_default="SHARDPROOF_VLLM_PYTHON",
    ),
]


def verify(
    context: typer.Context,
    models: ModelsArgument = None,
    plan: PlanOption = None,
    tp: TpOption = None,
    pp: PpOption = None,
    level: LevelOption = None,
    for_: ForOption = None,
    form: FormatOption = ReportFormat.TEXT,
    set_: SetOption = None,
    input_: InputOption = None,
    inputs: InputsOption = None,
    adapter: AdapterOption = None,
    attention: AttentionOption = None,
    experts: ExpertsOption = None,
    trust_remote_code: TrustOption = False,
    timeout: TimeoutOption = 300.0,
    weights: WeightsOption = False,
    strict: StrictOption = False,
    train: TrainOption = False,
    ep: EpOption = None,
    nnodes: NodesOption = 1,
    node_rank: NodeRankOption = 0,
    rdzv_endpoint: EndpointOption = "",
    client_python: ClientPythonOption = None,
    output: OutputOption = None,
    baseline: BaselineOption = None,
    write_baseline: WriteBaselineOption = None,
    changed: ChangedOption = False,
    _python: PythonOption = None,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Verify plans: by proof, and on real ranks (started here, or those of the torchrun or Slurm job around)."""
    levels = tuple(dict.fromkeys(level or ()))
    _prove_where_the_client_is(context, levels, client_python, for_)
    job = surrounding()
    progress = Progress(quiet or not is_first_rank())
    with only_results_on_stdout(debug=debug):
        known = known_findings(baseline, writable(write_baseline))
        asked = named_models(models, changed=changed, plan_file=plan, known=baseline)
        fixed = run_layout(tp, pp, ep=ep, ranks=job.size if job else None) if tp or pp or ep or job else None
        writable(output)
        given = inputs_given(input_, inputs)
        common = VerifyRequest(
            model=ModelReference("", settings(set_), trust_remote_code, given, several(adapter), attention, experts),
            plan_file=plan,
            plan=read_plan(plan) if plan == STDIN else None,
            layout=fixed or RunLayout(tp=2),
            levels=levels or _every_level(known, for_),
            form=form,
            timeout=timeout,
            client=for_ or ("vllm" if Level.CLIENT in levels else None),
            client_python=str(client_python) if client_python else None,
            weights=weights,
            strict=strict,
            train=train,
            nodes=nodes_of(nnodes, node_rank, rdzv_endpoint),
        )
        requests = requests_of(asked, common, fixed=fixed)
        if asked.listed:
            result = verify_all(requests, form, known, progress=progress)
        else:
            result = verify_plan(requests[0], progress=progress, known=known)
    if is_first_rank():
        write_result(output, result.text) if output is not None else print_result(result.text)
    raise typer.Exit(result.code)


def _every_level(known: KnownFindings, client: str | None) -> tuple[Level, ...]:
    """The levels to run where none is named: with a baseline each, else none, so that a refuted level ends the rest."""
    if not known.every_level:
        return ()
    return (Level.PROOF, Level.RUN) if client is None else (Level.PROOF,)


def _prove_where_the_client_is(
    context: typer.Context, levels: Sequence[Level], given: Path | None, client: str | None
) -> None:
    """Level `client` hands the command over to the interpreter of the client, and ends with its exit code."""
    if Level.CLIENT not in levels:
        return
    of_vllm = os.environ.get(VLLM_PYTHON) if (client or "vllm").startswith("vllm") else None
    code = run_in_client(str(given) if given else of_vllm, context.find_root().obj or (), say)
    if code is not None:
        raise typer.Exit(code)


def requests_of(asked: NamedModels, common: VerifyRequest, *, fixed: RunLayout | None) -> tuple[VerifyRequest, ...]:
    """A request for each model, layout and client; options of the command line stand over those of the project.

    Args:
        asked: the models, and the project that names them.
        common: what holds for each of them by the command line.
        fixed: the layout that the command line or the job sets; None where it sets none.
    """
    project = asked.project
    layouts = (fixed,) if fixed else (project.layouts if project else ()) or (common.layout,)
    clients = (common.client,) if common.client else (project.clients if project else ()) or (None,)
    levels = common.levels or (project.levels if project else ())
    found = []
    for reference in asked.models:
        trusted = common.model.trust_remote_code or asked.trusts(reference)
        plan_file = common.plan_file or (project.plans.get(reference) if project else None)
        for layout in layouts:
            for client in clients:
                own = client if client != "transformers" or common.client else None
                found.append(
                    replace(
                        common,
                        model=replace(common.model, reference=reference, trust_remote_code=trusted),
                        plan_file=plan_file,
                        layout=layout,
                        client=own,
                        levels=levels if own is None or common.levels else _of_client(levels),
                    )
                )
    return tuple(found)


def _of_client(levels: Sequence[Level]) -> tuple[Level, ...]:
    """The levels of a project that another client than Transformers has."""
    return tuple(level for level in levels if level is not Level.RUN) or (Level.PROOF,)


def verify_all(
    requests: Sequence[VerifyRequest], form: ReportFormat, known: KnownFindings, *, progress: Progress
) -> CommandResult:
    """Verify several models, and print all reports; an error of one model ends no other."""
    drawings: dict[int, Drawing] = {}

    def verified(request: VerifyRequest) -> CaseReport:
        case, drawing = verify_case(request, progress=progress)
        if form is ReportFormat.HTML:
            drawings[id(request)] = drawing
        return case

    cases = [attempted(request, verified, model=request.model.reference, asked=request.asked) for request in requests]
    return result_of(known.applied(cases, progress), form, [drawings.get(id(request)) for request in requests])


def verify_plan(request: VerifyRequest, *, progress: Progress, known: KnownFindings = NOTHING_KNOWN) -> CommandResult:
    """Run every level that was requested of one model, and format the report."""
    found, drawing = verify_case(request, progress=progress)
    (case,) = known.applied((found,), progress)
    if request.form in (ReportFormat.TEXT, ReportFormat.HTML):  # their head is the layout alone
        case = replace(case, asked=str(request.layout))
    return CommandResult(format_case(case, request.form, drawing=drawing), case.code)


def verify_case(request: VerifyRequest, *, progress: Progress) -> tuple[CaseReport, Drawing]:
    """Run every level that was requested of one model; the report, and what its page draws."""
    from shardproof.planner.loading.carried_plan import carried_plan, read_for
    from shardproof.planner.tracing.programs import on_meta

    given = request.plan or (read_plan(request.plan_file) if request.plan_file else None)
    loaded = read_model(request.model, progress)
    model = on_meta(loaded)
    plan = read_for(loaded, model, given) if given is not None else carried_plan(loaded, model)
    _refuse_empty_stages(request, loaded, model, plan)
    levels, skipped = run_levels(request, loaded, model, plan, progress)
    proved = request.client is None and any(level.level == "proof" for level in levels)
    degrees = _degrees(loaded, plan) if proved and request.layout.tp > 1 else None
    saved = shares_of(loaded, plan, request.layout.tp) if proved and not _refuted(levels) else None
    report = Report(loaded.title, levels, environment(), degrees, saved)
    drawing = Drawing(model, plan, request.layout.tp, request.layout.pp, lambda: _groups(request, progress))
    plan_file = request.plan_file if request.plan is None else None
    case = CaseReport(
        loaded.title,
        request.asked,
        EXIT_CODES[report.verdict],
        report,
        skipped=skipped,
        locate=locator(request.model.reference, loaded, plan_file),
    )
    return case, drawing


def _refuted(levels: Sequence[LevelResult]) -> bool:
    return any(level.verdict is Verdict.REFUTED for level in levels)


def _refuse_empty_stages(request: VerifyRequest, loaded: "LoadedModel", model: "nn.Module", plan: Plan) -> None:
    """Raise `MisuseError` where the model has fewer layers than the pipeline has stages."""
    from torch import nn

    from shardproof.planner.ir.plan import join
    from shardproof.planner.loading.carried_plan import base_prefix

    modules = dict(model.named_modules())
    listed = [modules.get(join(base_prefix(model), entry.module)) for entry in plan.pp]
    layers = next((len(module) for module in listed if isinstance(module, nn.ModuleList)), None)
    if layers is not None and request.layout.pp > layers:
        raise MisuseError(
            f"--pp {request.layout.pp}: {loaded.title} has {layers} layers, and every stage needs one; give {layers} at most."
        )


def _groups(request: VerifyRequest, progress: Progress) -> Explanation | None:
    """The groups of dims that must be split together, for the HTML page; None where the forward cannot be traced."""
    from shardproof.planner.inference.suggest import suggest
    from shardproof.planner.tracing.recorded_run import TraceError

    loaded = read_model(request.model, Progress(quiet=True))
    with progress.step(f"finding the groups of {loaded.title}"):
        try:
            return suggest(loaded, why=True).explanation
        except TraceError:
            return None


def _degrees(loaded: "LoadedModel", plan: Plan) -> Degrees:
    from shardproof.verify.proof.degrees import legal_degrees

    return legal_degrees(loaded, plan)
