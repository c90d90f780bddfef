"""Load a small checkpoint with the plan in the client's own code, and compare with the single-device model (level `client`)."""

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import transformers

from shardproof.launch.clients.checkpoint import servable, write_checkpoint
from shardproof.launch.clients.client_ranks import ClientRanks, ClientStep
from shardproof.launch.clients.other_python import VLLM_PYTHON
from shardproof.launch.clients.vllm_engine import LIMIT, Served, ServedCheckpoint, VllmEngine, difference
from shardproof.launch.result import MisuseError
from shardproof.planner.ir.findings import Fault, Finding, Severity
from shardproof.planner.ir.plan import Plan
from shardproof.planner.loading.carried_plan import base_prefix
from shardproof.planner.loading.load import LoadedModel
from shardproof.verify.findings import be451, be452
from shardproof.verify.report.report import LevelResult


def confirm_in_vllm(
    loaded: LoadedModel, plan: Plan, *, tp: int, pp: int, python: str | None = None, timeout: float = 600.0
) -> LevelResult:
    """Serve a twin with a plan in vLLM on CPU, at one rank and at `tp` x `pp`, and compare log-probabilities.

    Args:
        loaded: the model; a twin of it is served.
        plan: given to vLLM as `hf_overrides`, as a user would.
        python: the interpreter of vLLM's environment; by default what `SHARDPROOF_VLLM_PYTHON` names.
        timeout: seconds for each case.

    Raises:
        MisuseError: there is no such interpreter.
        TwinError: no small model with the same structure was found.
    """
    began = perf_counter()
    interpreter = python or os.environ.get(VLLM_PYTHON, "")
    if interpreter and not Path(interpreter).is_file():
        raise MisuseError(f"{interpreter}: there is no such interpreter; give the Python of vLLM's environment.")
    if not interpreter or not Path(interpreter).is_file():
        raise MisuseError(f"--level client needs vLLM's own Python: give --client-python, or set {VLLM_PYTHON}.")
    small = servable(loaded, tp=tp, pp=pp)
    with tempfile.TemporaryDirectory() as folder:
        model = write_checkpoint(small, Path(folder))
        overrides = overrides_of(plan)
        layouts = ((1, 1), (tp, pp))
        with VllmEngine(interpreter, timeout=timeout) as engine:
            answers = list(engine.run([ServedCheckpoint(folder, t, p, overrides) for t, p in layouts]))
        differences = [difference(model, answer) for answer in answers]
    other = answers[0].versions.get("transformers", transformers.__version__)
    findings = tuple(with_other_code(finding, other) for finding in _findings(answers, differences, tp, pp))
    named = {
        f"log-probability, tp {t} x pp {p}": d for (t, p), d in zip(layouts, differences, strict=True) if d is not None
    }
    return LevelResult("client", perf_counter() - began, findings, named)


def confirm_in_ranks(
    loaded: LoadedModel, plan: Plan, client: str, *, tp: int, python: str | None = None, timeout: float = 300.0
) -> LevelResult:
    """Generate with, or train for one step, a twin that the client has sharded by the plan, and compare with one device.

    Args:
        loaded: the model; a twin of it is run, in float32.
        plan: its tensor-parallel entries.
        client: one of `launch.clients.client_ranks.CLIENTS`.
        tp: ranks.
        python: the interpreter that has the client; this one by default.
        timeout: seconds for all of it.

    Raises:
        TwinError: no small model with the same structure was found.
    """
    began = perf_counter()
    small = servable(loaded, tp=tp, pp=1)
    with tempfile.TemporaryDirectory() as folder:
        model = write_checkpoint(small, Path(folder))
        case = ClientStep(Path(folder), client, plan.styles(base_prefix(model)), tp)
        with ClientRanks(python, timeout=timeout) as ranks:
            (result,) = ranks.run((case,))
    name = f"{client} at tp {tp}"
    found, error = dict(result.differences), result.error
    if error:
        absent = error.startswith(("ModuleNotFoundError", "ImportError"))
        severity, fault = (Severity.UNDECIDED, Fault.CLIENT) if absent else (Severity.ERROR, Fault.PLAN)
        findings: tuple[Finding, ...] = (be452.client_fails(name, "", error, severity=severity, fault=fault),)
    else:
        worst = max(found, key=lambda what: found[what])
        right = found[worst] <= LIMIT
        findings = () if right else (_differs(name, f"in {worst}", found[worst]),)
    return LevelResult("client", perf_counter() - began, findings, found)


def overrides_of(plan: Plan) -> dict[str, object]:
    """The plan of the base model as `hf_overrides`; what is empty is left out."""
    whole = plan.to_json()
    return {key: whole[key] for key in ("base_model_tp_plan", "base_model_pp_plan") if whole[key]}


def _findings(answers: list[Served], differences: list[float | None], tp: int, pp: int) -> tuple[Finding, ...]:
    alone, ranks = answers
    where = f"at tp {tp} x pp {pp}"
    if alone.error:
        return (be452.client_fails("vLLM", "on one rank", alone.error, severity=Severity.UNDECIDED, fault=Fault.MODEL),)
    if differences[0] is None or not differences[0] <= LIMIT:
        return (_differs("vLLM", "on one rank", differences[0], severity=Severity.UNDECIDED, fault=Fault.MODEL),)
    if ranks.error:
        first = f" (rank {ranks.rank} first)" if ranks.rank is not None else ""
        return (be452.client_fails("vLLM", where + first, ranks.error, severity=Severity.ERROR, fault=Fault.PLAN),)
    if differences[1] is None or not differences[1] <= LIMIT:
        return (_differs("vLLM", where, differences[1]),)
    return ()


def _differs(
    client: str,
    where: str,
    difference: float | None,
    *,
    severity: Severity = Severity.ERROR,
    fault: Fault = Fault.PLAN,
) -> Finding:
    return be451.answers_differ(client, where, difference, limit=LIMIT, severity=severity, fault=fault)


def with_other_code(finding: Finding, version: str) -> Finding:
    """The finding, and that the engine runs another modeling file than the one that was read here, where it does."""
    if version == transformers.__version__:
        return finding
    beside = f"beside vLLM lies Transformers {version}, and here {transformers.__version__}: its code of the model may be another"
    return replace(finding, why=f"{finding.why}; {beside}")
