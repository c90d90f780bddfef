"""The levels of `plan verify`, in order: the proof, the run on ranks, the run in the client."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from shardproof.launch.commands.cases.request import Level, RunLayout, VerifyRequest
from shardproof.launch.commands.read_inputs import read_dialect
from shardproof.launch.output.console import Progress
from shardproof.launch.result import MisuseError
from shardproof.planner.ir.findings import Fault, Finding, Severity, Verdict, as_written
from shardproof.planner.ir.plan import Plan
from shardproof.verify.findings import dy507
from shardproof.verify.report.report import LevelResult

if TYPE_CHECKING:
    from torch import nn

    from shardproof.planner.loading.load import LoadedModel


def run_levels(
    request: VerifyRequest, loaded: "LoadedModel", model: "nn.Module", plan: Plan, progress: Progress
) -> tuple[tuple[LevelResult, ...], str]:
    """The result of every level that was requested, and a line about a level that was skipped (else empty)."""
    if request.client is not None:
        levels, skipped = _for_client(request, loaded, plan, progress), ""
    else:
        levels, skipped = _proof_and_run(request, loaded, model, plan, progress)
    return _with_contradiction(levels), skipped


def _for_client(
    request: VerifyRequest, loaded: "LoadedModel", plan: Plan, progress: Progress
) -> tuple[LevelResult, ...]:
    """The proof in the client's dialect, and the run in the client. `--level run` is Transformers' own runtime."""
    from shardproof.verify.clients.prove import prove_for

    client = request.client or ""
    if loaded.adapters:
        raise MisuseError(f"--adapter: how {client} shards adapters is not known; leave --for {client} out.")
    # accelerate and TRL train what Transformers has sharded: its reading is theirs.
    dialect = read_dialect("transformers" if client in ("accelerate", "trl") else client)
    if loaded.asked.keywords() and dialect.client != "transformers":
        raise MisuseError(f"--attention and --experts are Transformers' own; leave them or --for {client} out.")
    if request.trains:
        raise MisuseError(f"--train asks Transformers' own runtime, which says nothing of {dialect.client}.")
    if Level.RUN in request.levels:
        raise MisuseError(f"--level run is Transformers' own runtime, which says nothing of {dialect.client}.")
    layout, wanted, results = request.layout, request.levels or (Level.PROOF,), []
    if Level.PROOF in wanted:
        with progress.step(f"proving the plan of {loaded.title} at {layout} for {dialect.name}"):
            results.append(prove_for(dialect, loaded, plan, tp=layout.tp, pp=layout.pp))
    if Level.CLIENT in wanted:
        results.append(_client_level(request, client.partition("@")[0], loaded, plan, progress))
    return tuple(results)


def _client_level(
    request: VerifyRequest, client: str, loaded: "LoadedModel", plan: Plan, progress: Progress
) -> LevelResult:
    """Run a twin in the client; only clients that run without a GPU."""
    from shardproof.launch.clients.client_ranks import CLIENTS
    from shardproof.launch.clients.confirm import confirm_in_ranks, confirm_in_vllm

    layout, python = request.layout, request.client_python
    if client != "vllm" and client not in CLIENTS:
        raise MisuseError(f"--level client runs vllm, {', '.join(CLIENTS)}: {client} does not run without a GPU.")
    with progress.step(f"running a twin of {loaded.title} in {client} at {layout}"):
        if client == "vllm":
            return confirm_in_vllm(loaded, plan, tp=layout.tp, pp=layout.pp, python=python, timeout=request.timeout)
        if layout.pp > 1:
            raise MisuseError(f"{client} makes no pipeline stages of the plan; --level run --pp {layout.pp} does.")
        return confirm_in_ranks(loaded, plan, client, tp=layout.tp, python=python, timeout=request.timeout)


def _proof_and_run(
    request: VerifyRequest, loaded: "LoadedModel", model: "nn.Module", plan: Plan, progress: Progress
) -> tuple[tuple[LevelResult, ...], str]:
    """The proof, the run on ranks, what a trainer does, and a line about a level that was skipped (else empty)."""
    from shardproof.verify.clients.diffusers.own_proof import prove_own_plan
    from shardproof.verify.proof.prove import prove

    layout, wanted = request.layout, request.levels or (Level.PROOF, Level.RUN)
    malformed = _malformed(model, plan, layout)
    own = loaded.is_module and request.plan is None and request.plan_file is None and bool(plan.tp) and layout.ep == 1
    results: list[LevelResult] = []
    if Level.PROOF in wanted:
        with progress.step(f"proving the plan of {loaded.title} at {layout}"):
            results.append(
                prove_own_plan(loaded, plan, tp=layout.tp, pp=layout.pp, strict=request.strict)
                if own
                else prove(loaded, plan, tp=layout.tp, ep=layout.ep, pp=layout.pp, strict=request.strict)
            )
    if Level.RUN in wanted:
        if malformed and not results:
            results.append(LevelResult("run", 0.0, malformed))
        elif malformed or (results and not request.levels and results[0].verdict is Verdict.REFUTED):
            return tuple(results), "run    not started: the plan is refuted already"
        else:
            with progress.step(f"running {loaded.title} on {layout.tp * layout.pp} ranks"):
                ran = _run(loaded, plan, request)
                results.append(_without_training(ran) if own else ran)
    if request.trains:
        if malformed or any(result.verdict is Verdict.REFUTED for result in results):
            return tuple(results), "train  not started: the plan is refuted already"
        with progress.step(f"training {loaded.title} on {layout.tp} ranks"):
            results.append(_train(loaded, plan, request))
    return tuple(results), ""


def _without_training(ran: LevelResult) -> LevelResult:
    """The run of a plan for inference: gradients that differ are said, and refute nothing."""
    found = (replace(one, severity=Severity.WARNING) if one.code == "DY502" else one for one in ran.findings)
    return replace(ran, findings=tuple(found))


def _malformed(model: "nn.Module", plan: Plan, layout: RunLayout) -> tuple[Finding, ...]:
    """Findings of a plan whose form is wrong for this model: every rank of a run would only raise."""
    from shardproof.planner.loading.carried_plan import base_prefix
    from shardproof.verify.proof.plan_form import check_plan

    findings = tuple(as_written(f, base_prefix(model)) for f in check_plan(model, plan, layout.tp))
    return findings if any(finding.severity is Severity.ERROR for finding in findings) else ()


def _has_weights(checkpoint: Path) -> bool:
    return checkpoint.is_file() or any(any(checkpoint.glob(kind)) for kind in ("*.safetensors", "*.bin", "*.gguf"))


def _run(loaded: "LoadedModel", plan: Plan, request: VerifyRequest) -> LevelResult:
    from shardproof.launch.ranks.confirm import confirm

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


def _train(loaded: "LoadedModel", plan: Plan, request: VerifyRequest) -> LevelResult:
    from shardproof.launch.ranks.train import confirm_training

    layout = request.layout
    if layout.pp > 1:
        raise MisuseError("--train asks ranks of one stage; leave --pp out (the run compares the training of stages).")
    return confirm_training(loaded, plan, tp=layout.tp, ep=layout.ep, timeout=request.timeout, nodes=request.nodes)


def _with_contradiction(levels: tuple[LevelResult, ...]) -> tuple[LevelResult, ...]:
    """Add DY507, a bug in shardproof, where the proof says proved and the run refutes.

    A rank that was killed or ran out of time decides nothing, so it contradicts nothing; nor does a fault of the client's
    runtime, which the proof does not cover.
    """
    if len(levels) < 2 or levels[0].verdict is not Verdict.PROVED:
        return levels
    proof, run, *rest = levels
    wrong = [found for found in run.findings if found.severity is Severity.ERROR and found.fault is not Fault.CLIENT]
    if not wrong:
        return levels
    bug = dy507.levels_contradict(wrong[0].place, dict.fromkeys(finding.code for finding in wrong))
    return proof, replace(run, findings=(*run.findings, bug)), *rest
