"""How sharp and how sound the proof of pipelines is: mutants of right plans and splits, judged by the proof and by two stages.

Counted as for tensor-parallel plans (`tests.bench.mutants`): a mutant is equivalent where a run confirms it. The ranks are
threads, which say what real ranks say (tests/dist/test_inprocess.py).
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import track
from torch import nn

from launch.api import confirm_cases
from planner.frontend.load import Loaded, LoadError, base_prefix, build, load
from planner.frontend.stacks import layer_stack
from planner.frontend.trace import TraceError, trace
from planner.frontend.twin import TwinError, twin
from planner.infer.pp import infer_pipeline
from planner.ir.findings import Severity
from planner.ir.graph import Graph
from planner.ir.plan import Plan, join
from tests.bench.mutants import read
from tests.bench.mutants_table import Judged, table
from tests.mutants.pipeline_operators import PipelineMutant, pipeline_mutants
from verify.checks.pipeline import check_chunks, check_pp
from verify.dynamic.cases import Case, Staging
from verify.dynamic.stages import dealt
from verify.report import LevelResult

TYPES = ("opt", "cpmant", "gemma2", "nanochat", "gpt_neox", "llama", "falcon", "mixtral", "qwen3", "phi3")
"""By default: rotary and learned positions, nested layers, experts, a bias that crosses every cut, a norm on both sides."""


def judge(name: str) -> Iterator[Judged]:
    """Every mutant of one type's inferred plan."""
    loaded = load(name)
    model = build(loaded)
    graph, prefix = trace(model), base_prefix(model)
    base, head = infer_pipeline(model, graph)
    plan = Plan(pp=base, head_pp=head)
    stack = layer_stack(model, [join(prefix, entry.module) for entry in base]) or ""
    found = list(pipeline_mutants(graph, plan, prefix, stack.removeprefix(f"{prefix}.")))
    proofs = [_proof(model, graph, mutant, len(list(model.get_submodule(stack).children()))) for mutant in found]
    runs = confirm_cases(
        tuple(_case(twin(loaded, tp=1, pp=2), mutant) for mutant in found), timeout=120.0, engine="inprocess"
    )
    for mutant, proof, run in zip(found, proofs, runs, strict=True):
        yield _judged(name, mutant, proof, run)


def _proof(model: nn.Module, graph: Graph, mutant: PipelineMutant, depth: int) -> LevelResult:
    findings = check_pp(model, graph, mutant.plan) + check_chunks(dealt(depth, 2, overlap=mutant.overlap), depth)
    return LevelResult("proof", 0.0, findings)


def _case(small: Loaded, mutant: PipelineMutant) -> Case:
    return Case(small, mutant.plan, 1, 2, staging=Staging(overlap=mutant.overlap))


def _judged(name: str, mutant: PipelineMutant, proof: LevelResult, run: LevelResult) -> Judged:
    errors = [finding for finding in proof.findings if finding.severity is Severity.ERROR]
    return Judged(
        model=name,
        base="inferred",
        operator=mutant.operator.partition(":")[0],
        mutant=mutant.name,
        proof=proof.verdict.value,
        run=run.verdict.value,
        codes=tuple(finding.code for finding in proof.findings),
        run_codes=tuple(finding.code for finding in run.findings),
        said=next((finding.message for finding in proof.findings), ""),
        run_said=next((finding.message for finding in run.findings), ""),
        named=any((finding.place.entry or "?").endswith(mutant.entry) for finding in errors),
        seconds=(round(proof.seconds, 3), round(run.seconds, 3)),
    )


def main(types: tuple[str, ...], out: Path, *, tp: int) -> int:
    """Judge all mutants of these types, print the table, write JSON; exit 1 on a false proof or accusation."""
    del tp
    console = Console(stderr=True)
    done = {row.model for row in read(out)}
    for name in track(types or TYPES, description="pipeline mutants", console=console):
        if name in done:
            continue
        try:
            rows = list(judge(name))
        except (LoadError, TraceError, TwinError, ValueError) as error:
            console.print(f"{name}: not judged: {error}")
            continue
        with out.open("a") as lines:
            lines.writelines(json.dumps(asdict(row)) + "\n" for row in rows)
    found = read(out)
    Console().print(table(found))
    return int(any(row.outcome in ("false proof", "false accusation") for row in found))
