"""Norms whose input vLLM gathers where it is sharded.

Source: vLLM 0.32.0, `vllm/model_executor/models/transformers/fusers/rms_norm.py` (`TPAwareNormMixin`, `match`).
"""

from collections.abc import Iterable
from dataclasses import replace

from shardproof.planner.ir.findings import Finding
from shardproof.planner.ir.graph import Graph
from shardproof.planner.ir.plan import generic
from shardproof.planner.ir.styles import After, Before, Style
from shardproof.planner.propagation.assign import Assigned
from shardproof.planner.tracing.programs import Subject
from shardproof.verify.clients.engine_decisions import may_be_norm, repeats

GATHERED_NORM = Style("norm of the gathered input", before=Before.GATHER, after=After.SPLIT)
"""Gathers a sharded input, normalises it, keeps this rank's part."""


def with_gathered_norm(subject: Subject, assigned: Assigned, findings: Iterable[Finding]) -> Assigned | None:
    """The layout in which the norm that received a shard gathers it, and so do its repeats; None where no norm is at fault."""
    graph = subject.graph
    for finding in findings:
        path = finding.place.module or ""
        module = graph.module_of.get(path)
        fault = finding.code in ("TP202", "TP206") and path not in assigned.modules
        if fault and module is not None and may_be_norm(module) and _of_mean_squares(graph, path):
            alike = {each: (GATHERED_NORM, generic(each)) for each in (path, *repeats(graph, path))}
            return replace(assigned, modules={**assigned.modules, **alike})
    return None


def _of_mean_squares(graph: Graph, path: str) -> bool:
    """Whether a norm divides by the root of the mean of squares, and takes nothing away first (`fusers/rms_norm.py`, `match`)."""
    targets = {op.target for op in graph.ops if op.module == path}
    return "rms_norm" in targets or ({"aten.mean", "aten.rsqrt"} <= targets and not targets & {"aten.sub", "aten.rsub"})
