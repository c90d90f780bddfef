"""`plan verify MODEL`: prove a plan, and run it on real ranks."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardproof.launch.commands.options import (
    DebugOption,
    FormatOption,
    ForOption,
    ModelArgument,
    QuietOption,
    SetOption,
    TrustOption,
    degree,
    settings,
)
from shardproof.launch.commands.read_inputs import ModelReference, read_model, read_plan
from shardproof.launch.commands.verify_levels import run_levels
from shardproof.launch.commands.verify_request import Level, VerifyRequest, nodes_of, run_layout
from shardproof.launch.output.console import Progress, only_results_on_stdout, print_result
from shardproof.launch.output.report_formats import Drawing, format_report
from shardproof.launch.ranks.job import is_first_rank, surrounding
from shardproof.launch.result import EXIT_CODES, CommandResult, MisuseError, ReportFormat
from shardproof.planner.ir.degrees import Degrees
from shardproof.planner.ir.explanation import Explanation
from shardproof.planner.ir.plan import Plan
from shardproof.verify.report.environment import environment
from shardproof.verify.report.report import Report

if TYPE_CHECKING:
    from torch import nn

    from shardproof.planner.loading.load import LoadedModel


PlanOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A plan file (JSON).", show_default="the plan that the model carries"),
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
    model: ModelArgument,
    plan: PlanOption = None,
    tp: TpOption = None,
    pp: PpOption = None,
    level: LevelOption = None,
    for_: ForOption = None,
    form: FormatOption = ReportFormat.TEXT,
    set_: SetOption = None,
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
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Verify a plan: by proof, and on real ranks (started here, or those of the torchrun or Slurm job around)."""
    job = surrounding()
    with only_results_on_stdout(debug=debug):
        request = VerifyRequest(
            model=ModelReference(model, settings(set_), trust_remote_code),
            plan_file=plan,
            layout=run_layout(tp, pp, ep=ep, ranks=job.size if job else None),
            levels=tuple(dict.fromkeys(level or ())),
            form=form,
            timeout=timeout,
            client=for_ if for_ or Level.CLIENT not in (level or ()) else "vllm",
            client_python=str(client_python) if client_python else None,
            weights=weights,
            strict=strict,
            train=train or Level.TRAIN in (level or ()),
            nodes=nodes_of(nnodes, node_rank, rdzv_endpoint),
        )
        result = verify_plan(request, progress=Progress(quiet or not is_first_rank()))
    if is_first_rank():
        print_result(result.text)
    raise typer.Exit(result.code)


def verify_plan(request: VerifyRequest, *, progress: Progress) -> CommandResult:
    """Run every level that was requested, and format the report."""
    from shardproof.planner.loading.carried_plan import carried_plan
    from shardproof.planner.tracing.programs import on_meta

    given = read_plan(request.plan_file) if request.plan_file else None
    loaded = read_model(request.model, progress)
    model = on_meta(loaded)
    plan = given if given is not None else carried_plan(loaded, model)
    _refuse_empty_stages(request, loaded, model, plan)
    levels, skipped = run_levels(request, loaded, model, plan, progress)
    proved = request.client is None and any(level.level == "proof" for level in levels)
    degrees = _degrees(loaded, plan) if proved and request.layout.tp > 1 else None
    report = Report(loaded.title, levels, environment(), degrees)
    drawing = Drawing(model, plan, request.layout.tp, request.layout.pp, lambda: _groups(request, progress))
    name = request.plan_file.name if request.plan_file else None
    text = format_report(
        report, request.form, layout=str(request.layout), drawing=drawing, plan_file=name, skipped=skipped
    )
    return CommandResult(text, EXIT_CODES[report.verdict])


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
    from shardproof.planner.tracing.trace import TraceError

    loaded = read_model(request.model, Progress(quiet=True))
    with progress.step(f"finding the groups of {loaded.title}"):
        try:
            return suggest(loaded, why=True).explanation
        except TraceError:
            return None


def _degrees(loaded: "LoadedModel", plan: Plan) -> Degrees:
    from shardproof.verify.proof.degrees import legal_degrees

    return legal_degrees(loaded, plan)
