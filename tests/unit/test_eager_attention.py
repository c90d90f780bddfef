"""The attention function of a modeling file is part of the proof, although Transformers takes torch's fused one by default."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers.models.llama import modeling_llama

from shardproof.planner.ir.findings import Verdict
from shardproof.planner.loading.carried_plan import carried_plan
from shardproof.planner.loading.load import load
from shardproof.planner.tracing import session
from shardproof.planner.tracing.programs import on_meta
from shardproof.verify.proof.prove import prove

SMALL = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 16}
own_attention: Callable[..., Any] = modeling_llama.eager_attention_forward


def less_the_largest_head(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What no rank can compute from its own heads."""
    output, weights = own_attention(*args, **kwargs)
    return output - output.amax(2, keepdim=True), weights


def test_an_attention_function_of_the_files_own_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling_llama, "eager_attention_forward", less_the_largest_head)
    model = load("llama", overrides={**SMALL, "num_key_value_heads": 2})
    found = prove(model, carried_plan(model, on_meta(model)), tp=2)
    assert found.verdict is Verdict.REFUTED
    assert found.findings[0].code == "TP206"
    assert found.findings[0].message.startswith("in eager attention, ")


def test_a_right_one_is_proved_and_told() -> None:
    model = load("llama", overrides={**SMALL, "num_key_value_heads": 2})
    found = prove(model, carried_plan(model, on_meta(model)), tp=2)
    assert found.verdict is Verdict.PROVED
    assert found.scope is not None and "eager attention" in found.scope.modes


def test_a_config_that_asks_for_it_is_traced_so_in_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling_llama, "eager_attention_forward", less_the_largest_head)
    model = load("llama", overrides={**SMALL, "num_key_value_heads": 2, "attn_implementation": "eager"})
    found = prove(model, carried_plan(model, on_meta(model)), tp=2)
    assert found.verdict is Verdict.REFUTED
    assert not found.findings[0].message.startswith("in eager attention, ")


def test_a_version_whose_config_has_another_field_is_not_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "EAGER_ATTENTION", {"_field_of_another_version": "eager"})
    model = load("llama", overrides={**SMALL, "num_key_value_heads": 2})
    found = prove(model, carried_plan(model, on_meta(model)), tp=2)
    assert found.verdict is Verdict.NOT_PROVED
    assert found.scope is not None and "eager attention" not in found.scope.modes
