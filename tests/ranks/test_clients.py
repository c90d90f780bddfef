"""Transformers' own clients on two real ranks: a right plan, one that is wrong, and a client that does not start."""

import os
from functools import cache

import pytest

from shardproof.launch.clients.confirm import confirm_in_ranks
from shardproof.planner.ir.findings import Verdict
from shardproof.planner.ir.plan import Edit, Plan
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import carried_plan
from shardproof.planner.loading.load import LoadedModel, load


@cache
def small() -> tuple[LoadedModel, Plan]:
    loaded = load("llama", overrides={"num_hidden_layers": "2"})
    whole = carried_plan(loaded, build(loaded))
    return loaded, Plan(tp=tuple(entry for entry in whole.tp if "embed" not in entry.pattern))


def test_a_step_by_torch_s_own_parallel_modules_is_that_of_one_device() -> None:
    loaded, plan = small()
    result = confirm_in_ranks(loaded, plan, "parallelize", tp=2, timeout=200)
    assert result.verdict is Verdict.CONFIRMED, result.findings
    assert max(result.measures.values()) < 1e-5


def test_a_wrong_plan_is_refuted_by_the_client_with_its_own_words() -> None:
    loaded, plan = small()
    wrong = plan.edited(Edit("model.layers.*.mlp.down_proj", "rowwise", "colwise"), "model")
    result = confirm_in_ranks(loaded, wrong, "parallelize", tp=2, timeout=200)
    assert result.verdict is Verdict.REFUTED
    assert {finding.code for finding in result.findings} <= {"BE451", "BE452"}


def test_generate_and_generate_batch_give_what_one_device_gives() -> None:
    loaded, plan = small()
    result = confirm_in_ranks(loaded, plan, "transformers", tp=2, timeout=200)
    assert result.verdict is Verdict.CONFIRMED, result.findings
    assert result.measures["generate_batch, tokens that differ"] == 0


def test_a_client_that_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, plan = small()
    monkeypatch.setenv("PYTHONPATH", "")
    result = confirm_in_ranks(loaded, plan, "trl", tp=2, timeout=200)
    assert result.verdict is Verdict.NOT_PROVED
    assert "trl" in result.findings[0].message


def test_deepspeed_that_is_not_installed_is_one_sentence() -> None:
    loaded, plan = small()
    result = confirm_in_ranks(loaded, plan, "deepspeed", tp=2, timeout=200)
    assert result.verdict is Verdict.NOT_PROVED
    assert result.findings[0].message == "deepspeed at tp 2 fails: ModuleNotFoundError: No module named 'deepspeed'"


DEEPSPEED = "SHARDPROOF_DEEPSPEED_PYTHON"


@pytest.mark.skipif(DEEPSPEED not in os.environ, reason=f"{DEEPSPEED} names no interpreter")
def test_deepspeed_trains_uneven_heads_rightly() -> None:
    sizes = {"num_hidden_layers": "2", "hidden_size": "48", "num_attention_heads": "6", "num_key_value_heads": "3"}
    loaded = load("llama", overrides=sizes)
    plan = carried_plan(loaded, build(loaded))
    result = confirm_in_ranks(loaded, plan, "deepspeed", tp=2, python=os.environ[DEEPSPEED], timeout=200)
    assert result.verdict is Verdict.CONFIRMED, result.findings
    assert set(result.measures) == {"loss", "logits", "gradients, relative", "parameters after a step"}
