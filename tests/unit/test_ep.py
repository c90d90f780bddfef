"""Expert-parallel plans: inferred from the experts' own computation, and checked against what the dispatch asks."""

from dataclasses import replace

import pytest

from shardproof.planner.inference.experts import infer_ep
from shardproof.planner.ir.findings import Severity, Verdict
from shardproof.planner.ir.plan import Plan, TpEntry
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import carried_plan
from shardproof.planner.loading.load import load
from shardproof.planner.tracing.trace import trace
from shardproof.verify.proof.experts import check_experts
from shardproof.verify.proof.prove import prove
from tests.versions import wants


@wants("ep_dispatch_experts")
@pytest.mark.parametrize("model", ["mixtral", "gpt_oss"])
def test_the_plan_by_hand_is_found_and_right(model: str) -> None:
    loaded = load(model)
    built = build(loaded)
    graph = trace(built)
    carried = carried_plan(loaded, built)
    assert {e.pattern: e.style for e in infer_ep(graph, "model")} == {e.pattern: e.style for e in carried.ep}
    assert check_experts(graph, carried, "model", 2) == ()


MIXTRAL = tuple(
    TpEntry(f"layers.*.mlp.experts{name}", style)
    for name, style in ((".gate_up_proj", "grouped_gemm"), (".down_proj", "grouped_gemm"), ("", "ep_dispatch_experts"))
)


@pytest.mark.parametrize(
    ("entries", "degree", "code", "words"),
    [
        (MIXTRAL[:2], 2, "TP214", "no tokens are sent"),
        (MIXTRAL[1:], 2, "TP214", "gate_up_proj stays whole"),
        (MIXTRAL, 3, "TP201", "8 experts"),
    ],
)
def test_half_a_plan_is_refuted(entries: tuple[TpEntry, ...], degree: int, code: str, words: str) -> None:
    graph = trace(build(load("mixtral", overrides={"num_hidden_layers": "2"})))
    (finding,) = check_experts(graph, Plan(ep=entries), "model", degree)
    assert finding.code == code
    assert words in finding.message


def test_experts_that_run_all_at_once_are_not_dispatched() -> None:
    graph = trace(build(load("llama4_text", overrides={"num_hidden_layers": "2"})))
    assert infer_ep(graph, "model") == ()
    entries = tuple(replace(e, pattern=e.pattern.replace("mlp", "feed_forward")) for e in MIXTRAL)
    (finding,) = check_experts(graph, Plan(ep=entries), "model", 2)
    assert "hidden states, expert ids and routing weights" in finding.message


@wants("ep_dispatch_experts")
def test_experts_that_no_token_of_the_trace_went_to_are_not_accused() -> None:
    loaded = load("ernie4_5_vl_moe_text", overrides={"num_hidden_layers": "2"})
    model = build(loaded)
    findings = check_experts(trace(model), carried_plan(loaded, model), "", 2)
    assert {(finding.code, finding.severity) for finding in findings} == {("TP210", Severity.UNDECIDED)}


def test_experts_are_looked_at_without_a_tensor_plan_too() -> None:
    """Up to Transformers 5.18 there is no style of dispatch, and what the expert plan of then does is not modelled."""
    wrong = Plan(ep=(TpEntry("layers.*.mlp.experts.gate_up_proj", "grouped_gemm"),))
    result = prove(load("mixtral", overrides={"num_hidden_layers": "2"}), wrong, tp=1, ep=2)
    assert result.verdict is Verdict.REFUTED
    assert {finding.code for finding in result.findings} == {"TP214"}
