"""Adapters of every type: the suggested plan proved and run, and what PEFT itself computes on ranks."""

import json
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn
from torch.distributed.tensor import DTensor
from transformers.distributed.configuration_utils import DistributedConfig

from benchmarks.types import causal_types
from shardproof.launch.ranks.confirm import confirm_cases
from shardproof.planner.inference.suggest import suggest
from shardproof.planner.inputs.example import Sizes
from shardproof.planner.inputs.numbers import real_inputs
from shardproof.planner.ir.errors import ShardproofError, reason
from shardproof.planner.loading.adapters.adapted_class import Adapter, peft
from shardproof.planner.loading.adapters.adapter_folders import adapted
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import carried_plan
from shardproof.planner.loading.load import LoadedModel, load
from shardproof.planner.loading.quiet import quiet
from shardproof.planner.twins.random_state import random_state
from shardproof.planner.twins.twin import twin
from shardproof.verify.proof.prove import prove
from shardproof.verify.run.collectives.threads import Threads
from shardproof.verify.run.reference import from_state, with_plan
from shardproof.verify.stages.case import Case

METHODS: Mapping[str, Mapping[str, object]] = {"lora": {}, "dora": {"use_dora": True}, "rslora": {"use_rslora": True}}
LIMIT = 1e-8
"""The relative error below which PEFT's ranks are right, in float64."""
TIME = 120.0
_GRADIENT = re.compile(r"lora_")


@dataclass(frozen=True, slots=True)
class Row:
    """One method on one type: verdicts on the suggested plan, on the model's own plan as PEFT reads it, and what PEFT's ranks
    computed with that, in evaluation and in training (`right`, `wrong`, or the error); `why` where nothing was asked.
    """

    model: str
    method: str
    proof: str = ""
    run: str = ""
    peft_proof: str = ""
    peft_evaluation: str = ""
    peft_training: str = ""
    why: str = ""


def main(names: tuple[str, ...], out: Path, *, tp: int) -> int:
    """Ask, print the counts, write JSON lines; exit 1 where a proof and the ranks disagree."""
    rows = [Row(**json.loads(line)) for line in out.read_text().splitlines()] if out.exists() else []
    known = {(row.model, row.method) for row in rows}
    wanted = [pair for pair in product(names or causal_types(), METHODS) if pair not in known]
    with out.open("a") as file:
        for name, method in track(wanted, description="adapters", console=Console(stderr=True)):
            rows.append(asked(name, method, tp))
            file.write(json.dumps(asdict(rows[-1])) + "\n")
            file.flush()
    Console().print(table(rows))
    return int(any(map(_contradicts, rows)))


def asked(name: str, method: str, tp: int) -> Row:
    """One method on a twin of one type."""
    try:
        small = twin(load(name), tp=tp)
        library = peft()
        config = library.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", **METHODS[method])
        model = adapted(small, [Adapter.of("default", config.to_dict())])
        plan = suggest(model).plan
        if not plan.tp and not plan.head_tp:
            return Row(name, method, why="nothing to shard")
        proof = prove(model, plan, tp=tp).verdict
        (run,) = confirm_cases((Case(model, plan, tp),), timeout=TIME, engine="inprocess")
        own = carried_plan(model, build(model))
        row = Row(name, method, proof.value, run.verdict.value)
        if not (own.tp or own.head_tp):
            return row
        read = prove(model, own, tp=tp).verdict
        evaluation, training = (peft_ranks(small, config, tp, training=mode) for mode in (False, True))
        return replace(row, peft_proof=read.value, peft_evaluation=evaluation, peft_training=training)
    except (ShardproofError, ValueError, RuntimeError, TypeError) as error:
        return Row(name, method, why=reason(error)[:200])


def peft_ranks(small: LoadedModel, config: Any, tp: int, *, training: bool) -> str:
    """What PEFT computes on ranks whose base model Transformers sharded by its own plan, against one device: logits without
    gradients, or gradients too.
    """
    base = random_state(build(small, device="cpu", dtype=torch.float64))
    generator = torch.Generator().manual_seed(1)
    with tempfile.TemporaryDirectory() as folder, quiet():
        single = peft().PeftModel(from_state(_copied(small), base), config)
        for value in (one for one in single.parameters() if one.requires_grad):
            value.data.copy_(torch.rand(value.shape, generator=generator, dtype=torch.float64) - 0.5)
        single.double().save_pretrained(folder)
        given = real_inputs(single.get_base_model(), Sizes(2, 5, 5))
        want = _answers(single, given, training)

        def rank(number: int) -> str:
            planned = with_plan(_copied(small), carried_plan(small, build(small)))
            sharded = from_state(planned, base, DistributedConfig(tp_size=tp))
            loaded = peft().PeftModel.from_pretrained(
                sharded, folder, is_trainable=True, torch_device="cpu", autocast_adapter_dtype=False
            )
            got = _answers(loaded, given, training)
            far = {what: _distance(got.get(what), value) for what, value in want.items()}
            worst = max(far, key=lambda what: far[what])
            return "right" if far[worst] < LIMIT else f"wrong: {worst} off by {far[worst]:.1e}"

        try:
            with Threads(tp) as threads:
                answers = threads.run(rank, timeout=TIME)
        except Exception as error:  # PEFT or torch raises on a rank
            return f"raises: {reason(error)}"[:300]
    return next((answer for answer in answers if answer != "right"), "right")


def _copied(loaded: LoadedModel) -> LoadedModel:
    return replace(loaded, config=deepcopy(loaded.config))


def _answers(model: nn.Module, given: Mapping[str, torch.Tensor], training: bool) -> dict[str, torch.Tensor]:
    """The logits, and in training the gradient of every parameter of the adapter, whole."""
    model.eval()
    with torch.set_grad_enabled(training):
        logits = model(**given, use_cache=False)[0]
    if not training:
        return {"logits": logits}
    logits.double().square().mean().backward()
    found = {"logits": logits.detach()}
    for name, value in model.named_parameters():
        if _GRADIENT.search(name) and value.grad is not None:
            found[f"gradient of {name}"] = _whole(value.grad)
    return found


def _whole(value: torch.Tensor) -> torch.Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _distance(got: torch.Tensor | None, want: torch.Tensor) -> float:
    if got is None or got.shape != want.shape:
        return float("inf")
    return float((got - want).norm() / want.norm().clamp_min(1e-12))


def _contradicts(row: Row) -> bool:
    ours = row.proof == "proved" and row.run == "refuted"
    return ours or (row.peft_proof == "refuted" and row.peft_evaluation == row.peft_training == "right")


def table(rows: Sequence[Row]) -> Table:
    """How many types of each method are proved and confirmed, and what PEFT's ranks compute by the verdict on its plan."""
    made = Table(
        "method", "proved and confirmed", "not asked", "PEFT's plan", "evaluation right", "training right", "of"
    )
    for method in METHODS:
        own = [row for row in rows if row.method == method]
        both = sum(row.proof == "proved" and row.run == "confirmed" for row in own)
        first = (method, str(both), str(sum(bool(row.why) for row in own)))
        for verdict in ("proved", "refuted", "not proved"):
            read = [row for row in own if row.peft_proof == verdict]
            right = [Counter(answers)["right"] for answers in _answered(read)]
            made.add_row(*first, verdict, *map(str, right), str(len(read)))
            first = ("", "", "")
    return made


def _answered(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    return [row.peft_evaluation for row in rows], [row.peft_training for row in rows]
