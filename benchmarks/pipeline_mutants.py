"""How sharp and how sound the proof of pipelines is: mutants of right plans, splits and stage programs, judged by proof and run.

Counted as for tensor-parallel plans (`benchmarks.mutants`): a mutant is equivalent where a run confirms it. Plans are proved
at full size; a stage program is proved, and run, on the twin. The ranks are threads, which say what real ranks say
(tests/ranks/test_inprocess.py).
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from time import perf_counter

from rich.console import Console
from rich.progress import track
from torch import nn

from benchmarks.mutants import read
from benchmarks.mutants_table import Judged, page, table
from shardproof.launch.ranks.confirm import confirm_cases
from shardproof.planner.inference.pipeline import infer_pipeline
from shardproof.planner.ir.errors import LoadError
from shardproof.planner.ir.findings import Finding, Severity, Verdict
from shardproof.planner.ir.graph import Graph
from shardproof.planner.ir.plan import Plan, join
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import base_prefix
from shardproof.planner.loading.load import LoadedModel, load
from shardproof.planner.tracing.module_tree import layer_stack
from shardproof.planner.tracing.recorded_run import TraceError
from shardproof.planner.tracing.trace import trace
from shardproof.planner.twins.twin import TwinError, twin
from shardproof.verify.proof.pipeline import check_chunks, check_pp
from shardproof.verify.proof.stages import Programs
from shardproof.verify.report.report import LevelResult
from shardproof.verify.stages.case import Case, Schedule, Staging
from shardproof.verify.stages.cutting import laid_out
from shardproof.verify.stages.stage_layout import dealt
from tests.mutants.injected_faults import InjectedFaults, overlapping
from tests.mutants.pipeline_operators import PipelineMutant, pipeline_mutants
from tests.mutants.stage_operators import StagedModel, StageMutant, stage_mutants

TYPES = tuple(
    "opt cpmant gemma2 nanochat gpt_neox llama falcon mixtral qwen3 phi3 granite minicpm3 gemma3_text gemma3n_text gemma4_text "
    "gpt2 biogpt bloom mpt xglm bert modernbert-decoder mamba jamba qwen2 qwen3_next deepseek_v3 llama4_text gpt_oss cohere2 "
    "olmo3 smollm3 nemotron starcoder2 stablelm codegen bart roberta ctrl lfm2".split()
)
"""By default: rotary and learned positions, scaled embeddings, nested layers, experts, states, two stacks, per-layer inputs,
layers of several kinds, tied tables, a bias that crosses every cut, a norm on both sides."""
SCALED = {"granite": {"embedding_multiplier": "12.0"}}
"""Defaults that hide a fault: a multiplier of one."""


def judge(name: str, limit: int = 0) -> Iterator[Judged]:
    """The inferred plan of one type, and every mutant of it, or `limit` of them at random."""
    loaded = load(name, overrides=SCALED.get(name, {}))
    model = build(loaded)
    graph, prefix = trace(model), base_prefix(model)
    base, head = infer_pipeline(model, graph)
    plan = Plan(pp=base, head_pp=head)
    stack = layer_stack(model, [join(prefix, entry.module) for entry in base]) or ""
    small = twin(loaded, tp=1, pp=2)
    programs, right = Programs(small), Case(small, plan, 1, 2)
    subject = StagedModel(programs.model, programs.graph, laid_out(right, programs.model).layout)
    plans = list(pipeline_mutants(graph, plan, prefix, stack.removeprefix(f"{prefix}.")))
    stages = list(stage_mutants(subject))
    plans, stages = _some(name, plans, stages, limit)
    depth = len(list(model.get_submodule(stack).children()))
    proofs = [
        _proved(lambda: check_pp(model, graph, plan) + programs.check(right).findings),
        *(_proof(model, graph, mutant, depth) for mutant in plans),
        *(_proved(partial(_of_programs, programs, _faulty(right, mutant))) for mutant in stages),
    ]
    cases = [right, *(_case(small, mutant) for mutant in plans), *(_faulty(right, mutant) for mutant in stages)]
    runs = confirm_cases(tuple(cases), timeout=120.0, engine="inprocess")
    whats = [_Mutant("base", "base", ()), *map(_of_plan, plans), *map(_of_stage, stages)]
    for mutant, proof, run in zip(whats, proofs, runs, strict=True):
        yield _judged(name, mutant, proof, run)


def _some(
    name: str, plans: list[PipelineMutant], stages: list[StageMutant], limit: int
) -> tuple[list[PipelineMutant], list[StageMutant]]:
    """The same ones for a name in every sweep; of stage programs twice as many as of plans, where there are."""
    if not limit:
        return plans, stages
    chosen = Random(name)
    some = chosen.sample(stages, min(len(stages), limit * 2 // 3))
    return chosen.sample(plans, min(len(plans), limit - len(some))), some


@dataclass(frozen=True, slots=True)
class _Mutant:
    """A mutant of either kind: its operator, its name, and what a finding that names it has in it."""

    operator: str
    name: str
    words: tuple[str, ...]


def _of_plan(mutant: PipelineMutant) -> _Mutant:
    return _Mutant(
        mutant.operator.partition(":")[0], mutant.name, (mutant.entry, *(("layer ",) if mutant.overlap else ()))
    )


def _of_stage(mutant: StageMutant) -> _Mutant:
    words = [word for one in mutant.faults for word in (f"stage {one.stage} ", one.what) if word]
    return _Mutant(mutant.operator, mutant.name, (*words, "stages", "stage 2"))


def _proved(check: Callable[[], tuple[Finding, ...]]) -> LevelResult:
    started = perf_counter()
    findings = check()
    return LevelResult("proof", perf_counter() - started, findings)


def _of_programs(programs: Programs, case: Case) -> tuple[Finding, ...]:
    return programs.check(case).findings


def _proof(model: nn.Module, graph: Graph, mutant: PipelineMutant, depth: int) -> LevelResult:
    chunks = overlapping(dealt(depth, 2), mutant.overlap)
    return _proved(lambda: check_pp(model, graph, mutant.plan) + check_chunks(chunks, depth))


def _case(small: LoadedModel, mutant: PipelineMutant) -> Case:
    return Case(small, mutant.plan, 1, 2, staging=Staging(faults=InjectedFaults(overlap=mutant.overlap)))


def _faulty(right: Case, mutant: StageMutant) -> Case:
    rounds = mutant.stages // right.pp
    schedule = Schedule.GPIPE if rounds == 1 else Schedule.INTERLEAVED
    return replace(right, staging=Staging(schedule, rounds, faults=InjectedFaults(mutant.faults)))


TEXT = (
    "# Mutants of pipelines",
    "",
    "Right pipeline plans, splits and stage programs with one mistake each, judged by the proof and by two stages (four for a",
    "wrong peer) of the twin, ranks as threads of one process. P1 to P16 are the faults of pipelines that people report; plans",
    "are mutated by `tests/mutants/pipeline_operators.py`, the programs of stages by `tests/mutants/stage_operators.py`.",
    "Written by `python -m benchmarks pipeline-mutants --page docs/pipeline_mutants.md`.",
    "",
)


def _judged(name: str, mutant: _Mutant, proof: LevelResult, run: LevelResult) -> Judged:
    errors = [finding for finding in proof.findings if finding.severity is Severity.ERROR]
    said = [f"{finding.message} {finding.place.entry or ''} {finding.place.module or ''}" for finding in errors]
    return Judged(
        model=name,
        base="inferred",
        operator=mutant.operator,
        mutant=mutant.name,
        proof=proof.verdict.value,
        run=run.verdict.value,
        codes=tuple(finding.code for finding in proof.findings),
        run_codes=tuple(finding.code for finding in run.findings),
        said=next((finding.message for finding in proof.findings), ""),
        run_said=next((finding.message for finding in run.findings), ""),
        named=any(word in one for one in said for word in mutant.words),
        seconds=(round(proof.seconds, 3), round(run.seconds, 3)),
    )


def main(types: tuple[str, ...], out: Path, *, limit: int = 0, page_at: Path | None = None) -> int:
    """Judge all mutants of these types, print the table, write JSON and the page; exit 1 on a false proof or accusation."""
    console = Console(stderr=True)
    done = {row.model for row in read(out)}
    for name in track(types or TYPES, description="pipeline mutants", console=console):
        if name in done:
            continue
        try:
            rows = list(judge(name, limit))
        except (LoadError, TraceError, TwinError, ValueError) as error:
            console.print(f"{name}: not judged: {error}")
            continue
        if not (rows[0].proof == Verdict.PROVED.value and rows[0].run == Verdict.CONFIRMED.value):
            console.print(f"{name}: the plan itself: {rows[0].proof} {rows[0].said}, {rows[0].run} {rows[0].run_said}")
        with out.open("a") as lines:
            lines.writelines(json.dumps(asdict(row)) + "\n" for row in rows)
    found = read(out)
    Console().print(table(found))
    if page_at is not None:
        page_at.write_text(page(found, TEXT))
    return int(any(row.outcome in ("false proof", "false accusation") for row in found))
