"""`plan verify MODEL`: prove a plan, and run it on real ranks."""

from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.answers import EXIT_CODES, Answer, MisuseError
from launch.console import Progress, only_results_on_stdout, print_result
from launch.job import Nodes, this_rank
from launch.model import Model, read_dialect, read_model, read_plan
from launch.options import (
    DebugOption,
    FormatOption,
    ForOption,
    ModelArgument,
    QuietOption,
    ReportFormat,
    SetOption,
    TrustOption,
    degree,
    settings,
    speaks,
)
from launch.reports import Drawing, shown
from planner.ir.degrees import Degrees
from planner.ir.findings import Fault, Finding, Severity, Verdict, as_written
from planner.ir.plan import Plan
from planner.ir.why import Explanation
from verify.environment import environment
from verify.report import LevelResult, Report

if TYPE_CHECKING:
    from torch import nn

    from planner.frontend.load import Loaded


class Level(StrEnum):
    PROOF = "proof"
    RUN = "run"
    CLIENT = "client"


@dataclass(frozen=True, slots=True)
class Layout:
    """Degrees on the two axes."""

    tp: int = 1
    pp: int = 1
    ep: int = 1

    def __str__(self) -> str:
        parts = [f"tp {self.tp}"] if self.tp > 1 or self.pp == 1 else []
        more = [f"{axis} {size}" for axis, size in (("pp", self.pp), ("ep", self.ep)) if size > 1]
        return " x ".join([*parts, *more])


@dataclass(frozen=True, slots=True)
class Verification:
    """What `plan verify` is asked. No levels means: the proof, then the run unless the proof refutes."""

    model: Model
    plan_file: Path | None = None
    layout: Layout = Layout(tp=2)
    levels: tuple[Level, ...] = ()
    form: ReportFormat = ReportFormat.TEXT
    timeout: float = 300.0
    client: str | None = None
    client_python: str | None = None
    weights: bool = False
    nodes: Nodes | None = None


def verify(
    model: ModelArgument,
    plan: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A plan file (JSON).", show_default="the plan that the model carries"),
    ] = None,
    tp: Annotated[
        int | None, typer.Option(parser=degree, metavar="N", help="Tensor-parallel degree.", show_default="2")
    ] = None,
    pp: Annotated[
        int | None, typer.Option(parser=degree, metavar="N", help="Pipeline stages.", show_default="1")
    ] = None,
    level: Annotated[
        list[Level] | None,
        typer.Option(help="What to verify by; repeatable.", show_default="proof, then run unless it is refuted"),
    ] = None,
    for_: ForOption = None,
    form: FormatOption = ReportFormat.TEXT,
    set_: SetOption = None,
    trust_remote_code: TrustOption = False,
    timeout: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="Time limit of a run; its ranks are ended after it.")
    ] = 300.0,
    weights: Annotated[
        bool, typer.Option("--weights", help="Run the checkpoint's own weights in their dtype, instead of a twin.")
    ] = False,
    ep: Annotated[
        int | None,
        typer.Option(parser=degree, metavar="N", help="Ranks that share the experts: all of --tp.", show_default="1"),
    ] = None,
    nnodes: Annotated[int, typer.Option(min=1, metavar="N", help="Machines that run this command together.")] = 1,
    node_rank: Annotated[int, typer.Option(min=0, metavar="N", help="Which of them this is, from 0.")] = 0,
    rdzv_endpoint: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where they meet: the first machine.", show_default="this machine")
    ] = "",
    client_python: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The interpreter of the client's environment, for --level client.",
            show_default="SHARDPROOF_VLLM_PYTHON",
        ),
    ] = None,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Verify a plan: by proof, and on real ranks (started here, or those of the torchrun or Slurm job around)."""
    rank = this_rank()
    with only_results_on_stdout(debug=debug):
        request = Verification(
            model=Model(model, settings(set_), trust_remote_code),
            plan_file=plan,
            layout=layout(tp, pp, ep=ep, ranks=rank.world if rank else None),
            levels=tuple(dict.fromkeys(level or ())),
            form=form,
            timeout=timeout,
            client=for_ if for_ or Level.CLIENT not in (level or ()) else "vllm",
            client_python=str(client_python) if client_python else None,
            weights=weights,
            nodes=machines(nnodes, node_rank, rdzv_endpoint),
        )
        result = answer(request, progress=Progress(quiet or not speaks()))
    if speaks():
        print_result(result.text)
    raise typer.Exit(result.code)


def layout(tp: int | None, pp: int | None, *, ranks: int | None, ep: int | None = None) -> Layout:
    """The degrees: what is given; else 2 tensor-parallel ranks alone, and inside a job of `ranks` all of them.

    Experts lie on the tensor-parallel ranks, so `ep` alone gives `tp` too.
    """
    tp = tp or ep
    if ranks is None:
        chosen = Layout(tp or (1 if pp else 2), pp or 1, ep or 1)
    else:
        chosen = Layout(tp or max(ranks // (pp or 1), 1), pp or 1, ep or 1)
    if chosen.ep not in (1, chosen.tp) or (chosen.ep > 1 and chosen.pp > 1):
        raise MisuseError(f"experts lie on the tensor-parallel ranks: give --ep {chosen.tp}, without stages, or none.")
    if chosen.tp * chosen.pp == 1:
        raise MisuseError("one rank is the single-device model itself; give --tp or --pp of 2 or more.")
    if ranks is not None and chosen.tp * chosen.pp != ranks:
        need = chosen.tp * chosen.pp
        raise MisuseError(
            f"{chosen} needs {need} ranks, and this job has {ranks}; start {need}, or give other degrees."
        )
    return chosen


def machines(count: int, this: int, endpoint: str) -> Nodes | None:
    """The machines that run this command together; None for this one alone."""
    if count == 1:
        return None
    if not endpoint:
        raise MisuseError("several machines need a place to meet: give --rdzv-endpoint HOST:PORT of the first.")
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdigit():
        raise MisuseError(f"--rdzv-endpoint {endpoint} is no HOST:PORT, such as first-machine:29500.")
    if this >= count:
        raise MisuseError(f"--node-rank {this} is none of {count} machines; they count from 0.")
    return Nodes(count, this, endpoint)


def answer(request: Verification, *, progress: Progress) -> Answer:
    """Every level asked for, one after the other."""
    from planner.frontend.load import carried_plan
    from planner.frontend.traced import on_meta

    given = read_plan(request.plan_file) if request.plan_file else None
    loaded = read_model(request.model, progress)
    model = on_meta(loaded)
    plan = given if given is not None else carried_plan(loaded, model)
    _refuse_empty_stages(request, loaded, model, plan)
    if request.client is None:
        levels, skipped = _levels(request, loaded, model, plan, progress)
    else:
        levels, skipped = _for_client(request, loaded, plan, progress), ""
    proved = request.client is None and any(level.level == "proof" for level in levels)
    degrees = _degrees(loaded, plan) if proved and request.layout.tp > 1 else None
    report = Report(loaded.title, _contradiction_named(levels), environment(), degrees)
    drawing = Drawing(model, plan, request.layout.tp, request.layout.pp, lambda: _groups(request, progress))
    name = request.plan_file.name if request.plan_file else None
    text = shown(report, request.form, layout=str(request.layout), drawing=drawing, plan_file=name, skipped=skipped)
    return Answer(text, EXIT_CODES[report.verdict])


def _refuse_empty_stages(request: Verification, loaded: "Loaded", model: "nn.Module", plan: Plan) -> None:
    """`MisuseError` where the plan's list of layers is shorter than the pipeline."""
    from torch import nn

    from planner.frontend.load import base_prefix
    from planner.ir.plan import join

    modules = dict(model.named_modules())
    listed = [modules.get(join(base_prefix(model), entry.module)) for entry in plan.pp]
    layers = next((len(module) for module in listed if isinstance(module, nn.ModuleList)), None)
    if layers is not None and request.layout.pp > layers:
        raise MisuseError(
            f"--pp {request.layout.pp}: {loaded.title} has {layers} layers, and every stage needs one; give {layers} at most."
        )


def _groups(request: Verification, progress: Progress) -> Explanation | None:
    """What the computation ties together, for the page; None where nothing can be inferred."""
    from planner.api import suggest
    from planner.frontend.trace import TraceError

    loaded = read_model(request.model, Progress(quiet=True))
    with progress.step(f"finding the groups of {loaded.title}"):
        try:
            return suggest(loaded, why=True).explanation
        except TraceError:
            return None


def _for_client(request: Verification, loaded: "Loaded", plan: Plan, progress: Progress) -> tuple[LevelResult, ...]:
    """The proof in one client's dialect; a run on ranks here would be Transformers' own."""
    from verify.backends.proof import prove_for

    client = request.client or ""
    # accelerate and TRL train what Transformers has sharded: its reading is theirs.
    dialect = read_dialect("transformers" if client in ("accelerate", "trl") else client)
    if Level.RUN in request.levels:
        raise MisuseError(f"--level run is Transformers' own runtime, which says nothing of {dialect.client}.")
    layout, wanted, results = request.layout, request.levels or (Level.PROOF,), []
    if Level.PROOF in wanted:
        with progress.step(f"proving the plan of {loaded.title} at {layout} for {dialect.name}"):
            results.append(prove_for(dialect, loaded, plan, tp=layout.tp, pp=layout.pp))
    if Level.CLIENT in wanted:
        results.append(_served(request, client.partition("@")[0], loaded, plan, progress))
    return tuple(results)


def _served(request: Verification, client: str, loaded: "Loaded", plan: Plan, progress: Progress) -> LevelResult:
    """The client itself, where it runs without a GPU."""
    from launch.client import confirm_in_ranks, confirm_in_vllm
    from launch.engines.stepping import CLIENTS

    layout, python = request.layout, request.client_python
    if client != "vllm" and client not in CLIENTS:
        raise MisuseError(f"--level client runs vllm, {', '.join(CLIENTS)}: {client} does not run without a GPU.")
    with progress.step(f"running a twin of {loaded.title} in {client} at {layout}"):
        if client == "vllm":
            return confirm_in_vllm(loaded, plan, tp=layout.tp, pp=layout.pp, python=python, timeout=request.timeout)
        if layout.pp > 1:
            raise MisuseError(f"{client} makes no pipeline stages of the plan; --level run --pp {layout.pp} does.")
        return confirm_in_ranks(loaded, plan, client, tp=layout.tp, python=python, timeout=request.timeout)


def _levels(
    request: Verification, loaded: "Loaded", model: "nn.Module", plan: Plan, progress: Progress
) -> tuple[tuple[LevelResult, ...], str]:
    """The results, and a sentence on a level that was not reached."""
    from verify.static import prove

    layout, wanted = request.layout, request.levels or (Level.PROOF, Level.RUN)
    malformed = _malformed(model, plan, layout)
    results: list[LevelResult] = []
    if Level.PROOF in wanted:
        with progress.step(f"proving the plan of {loaded.title} at {layout}"):
            results.append(prove(loaded, plan, tp=layout.tp, ep=layout.ep, pp=layout.pp))
    if Level.RUN in wanted:
        if malformed and not results:
            results.append(LevelResult("run", 0.0, malformed))
        elif malformed or (results and not request.levels and results[0].verdict is Verdict.REFUTED):
            return tuple(results), "run    not started: the plan is refuted already"
        else:
            with progress.step(f"running {loaded.title} on {layout.tp * layout.pp} ranks"):
                results.append(_run(loaded, plan, request))
    return tuple(results), ""


def _malformed(model: "nn.Module", plan: Plan, layout: Layout) -> tuple[Finding, ...]:
    """Findings that make a run pointless: the plan is none for this model. A run's own rank would only raise."""
    from planner.frontend.load import base_prefix
    from verify.checks.plan import check_plan

    findings = tuple(as_written(f, base_prefix(model)) for f in check_plan(model, plan, layout.tp))
    return findings if any(finding.severity is Severity.ERROR for finding in findings) else ()


def _degrees(loaded: "Loaded", plan: Plan) -> Degrees:
    from verify.degrees import legal_degrees

    return legal_degrees(loaded, plan)


def _has_weights(checkpoint: Path) -> bool:
    return checkpoint.is_file() or any(any(checkpoint.glob(kind)) for kind in ("*.safetensors", "*.bin", "*.gguf"))


def _run(loaded: "Loaded", plan: Plan, request: Verification) -> LevelResult:
    from launch.api import confirm

    layout = request.layout
    if request.weights and loaded.checkpoint is None:
        raise MisuseError(f"{loaded.title} has no weights; give a checkpoint folder or a GGUF file, or drop --weights.")
    if request.weights and loaded.checkpoint is not None and not _has_weights(loaded.checkpoint):
        raise MisuseError(f"{loaded.title}: this folder holds no weights (*.safetensors, *.bin); drop --weights.")
    return confirm(
        loaded,
        plan,
        tp=layout.tp,
        pp=layout.pp,
        ep=layout.ep,
        weights=request.weights,
        timeout=request.timeout,
        nodes=request.nodes,
    )


def _contradiction_named(levels: tuple[LevelResult, ...]) -> tuple[LevelResult, ...]:
    """DY507 where the proof holds and the run refutes: that is our bug, and is said.

    A rank that was killed or ran out of time decides nothing, and so contradicts nothing; nor does a fault of the
    client's runtime, of which the proof does not speak.
    """
    if len(levels) != 2 or levels[0].verdict is not Verdict.PROVED:
        return levels
    proof, run = levels
    wrong = [found for found in run.findings if found.severity is Severity.ERROR and found.fault is not Fault.CLIENT]
    if not wrong:
        return levels
    bug = Finding(
        "DY507",
        Severity.ERROR,
        "The proof says `proved` and the run refuted it: this is a bug in shardproof; please report this command.",
        wrong[0].place,
        why="a proof holds for all weights, so no run may contradict it",
        found=f"proof: proved; run: refuted ({', '.join(dict.fromkeys(finding.code for finding in wrong))})",
        needed="two levels that agree",
        fault=Fault.OURS,
    )
    return proof, replace(run, findings=(*run.findings, bug))
