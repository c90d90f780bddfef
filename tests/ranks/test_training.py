"""Level train on real ranks: every question is answered, and an answer that is wrong is told."""

from dataclasses import replace

import pytest

from shardproof.launch.ranks.train import confirm_training
from shardproof.planner.ir.errors import ArgumentError
from shardproof.planner.ir.findings import Fault, Severity, Verdict
from shardproof.planner.ir.plan import Plan
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import carried_plan
from shardproof.planner.loading.load import load
from shardproof.verify.report.report import LevelResult
from shardproof.verify.run.training.questions import QUESTIONS

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def opt() -> LevelResult:
    """A model with dropout on its residual stream, and a plan that leaves its attention whole."""
    styles = {"decoder.layers.*.fc1": "colwise", "decoder.layers.*.fc2": "rowwise"}
    plan = {"base_model_tp_plan": styles, "tp_plan": {"lm_head": "colwise_gather_output"}}
    return confirm_training("opt", Plan.from_json(plan))


def test_every_question_is_answered(opt: LevelResult) -> None:
    assert list(opt.answers) == [question.name for question in QUESTIONS]
    assert opt.verdict is Verdict.CONFIRMED
    assert opt.answers["AdamW"] == opt.answers["saving, every rank"] == opt.answers["resuming"] == "right"


def test_clipping_raises_and_another_way_is_right(opt: LevelResult) -> None:
    (finding,) = (one for one in opt.findings if one.code == "TR601")
    assert finding.fault is Fault.CLIENT
    assert finding.severity is Severity.WARNING
    assert "mixed torch.Tensor and DTensor" in finding.message
    assert "get_total_norm" in finding.needed


def test_saving_on_one_rank_waits_for_the_others(opt: LevelResult) -> None:
    (finding,) = (one for one in opt.findings if one.code == "TR608")
    assert finding.fault is Fault.CALLER
    assert "would never return" in finding.message


def test_replicas_drift_with_a_seed_a_rank(opt: LevelResult) -> None:
    (finding,) = (one for one in opt.findings if one.code == "TR605")
    assert finding.fault is Fault.CALLER
    assert "torch.manual_seed(seed)" in finding.needed
    assert "ranks must draw alike in model.decoder.layers.*" in opt.answers["dropout, one seed"]


def test_a_wrong_plan_is_told_before_anything_else_is_asked() -> None:
    loaded = load("qwen3")
    plan = carried_plan(loaded, build(loaded))
    wrong = replace(plan, tp=tuple(entry for entry in plan.tp if not entry.pattern.endswith("k_norm")))
    result = confirm_training(loaded, wrong)
    assert result.verdict is Verdict.REFUTED
    assert [finding.code for finding in result.findings] == ["TR600"]
    assert result.findings[0].fault is Fault.PLAN
    assert all("a plain training step is wrong" in words for words in list(result.answers.values())[1:])


def test_one_rank_is_refused() -> None:
    with pytest.raises(ArgumentError, match="2 tensor-parallel ranks or more"):
        confirm_training("qwen3", tp=1)
