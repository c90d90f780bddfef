"""Tensor- and pipeline-parallel plans of Transformers models: inferred, proved, and confirmed on real ranks.

This module is the public interface, and all of it:

- `load` reads a model, `suggest` infers a plan for it, `prove` and `confirm` verify a plan, `check` asks what stands between a
  model and the clients that run it, `layouts` ranks the ways to lay it over devices;
- `Plan`, `Finding`, `Severity`, `Verdict`, `LevelResult`, `Report`, `Suggestion`, `LoadedModel` and `RankedLayouts` are what they
  take and give;
- every error that is the caller's or the model's is a `ShardproofError`, whose message is one sentence.

The arguments are called alike everywhere: `model` is a loaded model or a reference to one, `plan` is a plan (by default the one
that the model carries), `tp`, `pp` and `ep` are degrees: ranks on the tensor-parallel axis, pipeline stages, ranks that share the
experts.

Stable from release to release: the names in `__all__`, their arguments and attributes, the codes of findings, and the keys of
`Plan.to_json` (keys are added, never renamed). Everything below `shardproof.planner`, `shardproof.verify` and
`shardproof.launch` may change.

Importing this module loads neither torch nor Transformers; calling a function does.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from shardproof.launch.rank_layouts import RankedLayouts
    from shardproof.planner.inference.suggest import Suggestion
    from shardproof.planner.ir.errors import ShardproofError
    from shardproof.planner.ir.findings import Finding, Severity, Verdict
    from shardproof.planner.ir.plan import Plan
    from shardproof.planner.loading.load import LoadedModel
    from shardproof.verify.report.report import LevelResult, Report

__all__ = [
    "load",
    "suggest",
    "prove",
    "confirm",
    "check",
    "layouts",
    "Plan",
    "Finding",
    "Severity",
    "Verdict",
    "LevelResult",
    "Report",
    "Suggestion",
    "LoadedModel",
    "RankedLayouts",
    "ShardproofError",
]

_HOMES = {
    "Plan": "planner.ir.plan",
    "Finding": "planner.ir.findings",
    "Severity": "planner.ir.findings",
    "Verdict": "planner.ir.findings",
    "LevelResult": "verify.report.report",
    "Report": "verify.report.report",
    "Suggestion": "planner.inference.suggest",
    "LoadedModel": "planner.loading.load",
    "RankedLayouts": "launch.rank_layouts",
    "ShardproofError": "planner.ir.errors",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(f"shardproof.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'shardproof' has no attribute {name!r}")


def load(
    reference: "str | nn.Module",
    *,
    overrides: Mapping[str, object] | None = None,
    trust_remote_code: bool = False,
    inputs: "Sequence[str] | Mapping[str, Tensor | str]" = (),
    adapters: Sequence[str] = (),
    attention: str | None = None,
    experts: str | None = None,
) -> "LoadedModel":
    """Read a model: its config and its class. No weights are read, and nothing is fetched from the network.

    Args:
        reference: a Transformers model type (`llama`), the path of a config.json, a checkpoint folder or a GGUF file, a Hub id
            that is in the local cache, `file.py:Class` or `package.module:Class`, a function that makes a module in the same
            form, a PeftModel, or any other module itself (which other processes cannot load: it is proved, and not run).
        overrides: fields of the config and their values; a dot reaches into a sub-config. A string is read as the command's
            `--set key=value` reads it: as JSON where it is JSON, else as text.
        trust_remote_code: whether code that lies beside a config.json may run.
        inputs: what the forward of a module that is no Transformers model is given, as `NAME: DTYPE[DIMS]`, or by name as
            tensors, which stand for their dtypes and shapes; guessed by default.
        adapters: folders of adapters (LoRA, DoRA, rsLoRA) that PEFT saved: the plan is then that of the model with them.
        attention: the attention implementation that the model runs with (`eager`, `sdpa`, `flex_attention`), by default what the
            config names, and `eager` beside `sdpa`.
        experts: the experts implementation (`eager`, `batched_mm`, `grouped_mm`), by default `eager`.

    Raises:
        ShardproofError: the reference names no model, an override names no field, an input has no such form, an adapter does
            not fit, or Transformers does not have that implementation for this model.
    """
    from shardproof.planner.loading import load as loading

    return loading.load(
        reference,
        overrides=overrides,
        trust_remote_code=trust_remote_code,
        inputs=inputs,
        adapters=adapters,
        attention=attention,
        experts=experts,
    )


def suggest(model: "LoadedModel | str", *, why: bool = False, tp: int | None = None) -> "Suggestion":
    """Infer a plan from the computation of a model, traced once on the meta device.

    The tensor part is tried on one rank's program in every mode while it is inferred, and a pipeline or expert part that the
    proof refutes is left out; `prove` is the independent proof of the whole at one degree.

    Args:
        model: a loaded model or a reference to one.
        why: also explain the plan: groups of dims, what stays whole and its bytes, changes of the code that would shard more.
        tp: a number of ranks at which the plan has to be right: what does not divide over them is left whole or gathered. By
            default a plan for as many degrees as there are.

    Raises:
        ShardproofError: the reference names no model, or its forward cannot be traced.
    """
    from shardproof.launch import proved_suggestion

    return proved_suggestion.suggest(model, why=why, tp=tp)


def prove(
    model: "LoadedModel | str",
    plan: "Plan | None" = None,
    *,
    tp: int = 2,
    pp: int = 1,
    ep: int = 1,
    strict: bool = False,
) -> "LevelResult":
    """Prove or refute a plan: the program of one rank is related to the single-device program, operator by operator.

    Takes seconds, one process, no weights and no process group.

    Args:
        model: a loaded model or a reference to one.
        plan: the plan under proof; by default the one that the model carries.
        tp: the tensor-parallel degree, at least 1.
        pp: the number of pipeline stages; above 1 the pipeline plan and the program of every stage are checked.
        ep: the expert-parallel degree, 1 or `tp`: experts lie on the tensor-parallel ranks.
        strict: an assumption of the proof is undecided. `scope` of the result says what the proof covers and assumes.

    Raises:
        ShardproofError: a degree is below 1, or the reference names no model.
    """
    from shardproof.verify.proof import prove as proof

    return proof.prove(model, plan, tp=tp, pp=pp, ep=ep, strict=strict)


def confirm(
    model: "LoadedModel | str",
    plan: "Plan | None" = None,
    *,
    tp: int = 2,
    pp: int = 1,
    ep: int = 1,
    weights: bool = False,
    timeout: float = 300.0,
) -> "LevelResult":
    """Run a plan on `tp * pp` real ranks and compare with the single-device model.

    Inside a torchrun or Slurm job its ranks are used; else ranks are started on this machine, and ended before this returns. A
    script that calls this needs the guard `if __name__ == "__main__":`.

    Args:
        model: a loaded model or a reference to one.
        plan: the plan under test; by default the one that the model carries.
        tp: ranks on the tensor-parallel axis.
        pp: pipeline stages.
        ep: ranks that share the experts: 1 or `tp`.
        weights: run the real checkpoint in its own dtype, instead of a small twin with random weights in float64.
        timeout: seconds for the run.

    Raises:
        ShardproofError: the degrees make no layout, or not that of the job; there is no checkpoint to run; or the reference
            names no model.
    """
    from shardproof.launch.ranks import confirm as run

    return run.confirm(model, plan, tp=tp, pp=pp, ep=ep, weights=weights, timeout=timeout)


def check(
    model: "LoadedModel | str",
    plan: "Plan | None" = None,
    *,
    clients: Sequence[str] = ("transformers", "vllm", "sglang", "tgi", "torchtitan"),
) -> "Report":
    """What stands between a model and each client, apart from the numbers: one level of the report for each client.

    Args:
        model: a loaded model or a reference to one.
        plan: the plan to be read in each client's dialect; by default the one that the model carries.
        clients: names of clients, with a version or without (`vllm@0.24`).

    Raises:
        ShardproofError: a client is not known, or the reference names no model.
    """
    from shardproof.verify.clients import check as contract

    return contract.check(model, plan, clients=clients)


def layouts(
    model: "LoadedModel | str",
    plan: "Plan | None" = None,
    *,
    devices: int,
    memory: float,
    nodes: int = 1,
    context: int = 4096,
    batch: int = 32,
    element_bytes: int = 2,
    train: bool = False,
) -> "RankedLayouts":
    """Rank every tensor x pipeline x data-parallel layout of a model on so many devices, best first.

    Args:
        model: a loaded model or a reference to one.
        plan: the plan to lay out; by default the one that the model carries, and a suggestion where it carries none.
        devices: how many devices there are.
        memory: bytes of memory of one device.
        nodes: machines that the devices lie in, evenly.
        context: tokens of a sequence.
        batch: sequences in all.
        element_bytes: bytes of one element of parameters, gradients, moments and cache.
        train: for training with AdamW, instead of serving.

    Raises:
        ShardproofError: a count is below 1, the devices do not divide evenly over the nodes, the reference names no model, or its
            forward cannot be traced.
    """
    from shardproof.launch.rank_layouts import machine_of, rank_layouts
    from shardproof.planner.layouts.cost import Load

    machine = machine_of(devices=devices, memory=memory, nodes=nodes)
    return rank_layouts(model, plan, machine, Load(context, batch, element_bytes, train))
