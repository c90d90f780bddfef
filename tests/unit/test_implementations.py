"""Attention and experts implementations are the caller's choice: checked at the door, traced, told, and used by twins."""

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.integrations import flex_attention as client
from transformers.integrations import moe

from shardproof.planner.ir.errors import ShardproofError
from shardproof.planner.ir.findings import Severity, Verdict
from shardproof.planner.loading.build import build
from shardproof.planner.loading.implementations import Implementations, asked_of
from shardproof.planner.loading.load import LoadedModel, load
from shardproof.planner.tracing.programs import on_meta, subject_of
from shardproof.planner.transformers_facts.flex_attention import attended, flex_by_definition
from shardproof.planner.twins.twin import twin
from shardproof.verify.proof.prove import prove
from shardproof.verify.proof.tensor import check_tensor
from shardproof.verify.stages.exact import Wide

SMALL = {
    "num_hidden_layers": 1,
    "vocab_size": 128,
    "intermediate_size": 96,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
EXPERTS = {**SMALL, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}


@pytest.mark.parametrize(
    ("model", "asked", "said"),
    [
        (
            "llama",
            {"attention": "sdap"},
            "--attention sdap: the installed Transformers registers no such implementation",
        ),
        ("gpt_oss", {"attention": "sdpa"}, "--attention sdpa: Transformers refuses it for gpt_oss (ValueError: "),
        ("llama", {"experts": "batched_mm"}, "--experts batched_mm: llama has no experts whose implementation"),
        (
            "llama",
            {"attention": "flash_attention_2"},
            "--attention flash_attention_2: Transformers refuses it for llama",
        ),
    ],
)
def test_what_is_not_there_for_a_model_is_refused(model: str, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ShardproofError) as refused:
        load(model, overrides={"num_hidden_layers": 1}, **asked)
    assert str(refused.value).startswith(said)


def test_it_goes_with_the_model_into_its_twin_and_other_processes() -> None:
    loaded = load("qwen3_moe", overrides=EXPERTS, attention="eager", experts="batched_mm")
    again = pickle.loads(pickle.dumps(twin(loaded, tp=2)))
    model = build(again)
    assert asked_of(model) == Implementations("eager", "batched_mm")
    config: Any = model.config
    assert (config._attn_implementation, config._experts_implementation) == ("eager", "batched_mm")


@pytest.mark.parametrize(
    ("name", "op"), [("eager", "aten.index_add"), ("batched_mm", "aten.bmm"), ("grouped_mm", "aten._grouped_mm")]
)
def test_experts_are_proved_as_asked(name: str, op: str) -> None:
    loaded = load("qwen3_moe", overrides=EXPERTS, experts=name)
    targets = {one.target.removesuffix("_") for one in subject_of(on_meta(loaded)).graph.ops}
    assert op in targets
    found = prove(loaded, tp=2)
    assert found.verdict is Verdict.PROVED
    assert found.scope is not None and found.scope.asked == (f"experts: {name} (asked)",)
    assert f"experts: {name} (asked)" in found.scope.sentence()


def refuted(loaded: LoadedModel, styles: dict[str, str]) -> bool:
    return any(one.severity is Severity.ERROR for one in check_tensor(subject_of(on_meta(loaded)), styles, 2))


OF_EXPERTS = {
    "model.layers.*.mlp.experts.gate_up_proj": "packed_colwise",
    "model.layers.*.mlp.experts.down_proj": "rowwise",
    "model.layers.*.mlp.experts": "moe_tp_experts",
}


@pytest.mark.parametrize("name", ["batched_mm", "grouped_mm"])
def test_a_wrong_plan_of_experts_is_refuted_in_every_implementation(name: str) -> None:
    loaded = load("qwen3_moe", overrides=EXPERTS, experts=name)
    assert not refuted(loaded, OF_EXPERTS)
    assert refuted(loaded, {**OF_EXPERTS, "model.layers.*.mlp.experts.gate_up_proj": "colwise"})


@pytest.fixture
def scaled_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts of one implementation that put something to the sum that no rank has alone."""
    own = moe.ALL_EXPERTS_FUNCTIONS["batched_mm"]

    def scaled(*args: Any) -> Tensor:
        output: Tensor = own(*args)
        return output / (1 + output.abs().amax())

    monkeypatch.setitem(moe.ExpertsInterface._global_mapping, "batched_mm", scaled)


@pytest.mark.usefixtures("scaled_experts")
def test_only_the_implementation_that_was_asked_for_is_proved() -> None:
    asked = [load("qwen3_moe", overrides=EXPERTS, experts=name) for name in ("eager", "batched_mm")]
    assert [refuted(one, OF_EXPERTS) for one in asked] == [False, True]


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
def test_attention_is_proved_as_asked(attention: str) -> None:
    found = prove(load("llama", overrides=SMALL, attention=attention), tp=2)
    assert found.verdict is Verdict.PROVED
    assert found.scope is not None and found.scope.asked == (f"attention: {attention} (asked)",)
    assert "eager attention" not in found.scope.modes
    assert any("flex attention" in one for one in found.scope.assumptions) == (attention == "flex_attention")


def test_an_override_of_the_config_is_the_same_question() -> None:
    assert load("llama", overrides={**SMALL, "attn_implementation": "eager"}).asked == Implementations("eager")


def test_what_cannot_be_traced_is_not_proved() -> None:
    found = prove(load("llama", overrides=SMALL, attention="paged|eager"), tp=2)
    assert found.verdict is Verdict.NOT_PROVED
    assert "without a paged attention cache" in found.findings[0].message


def test_flex_attention_by_definition_is_what_torch_computes() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, heads, 12, 16) for heads in (4, 2, 2))
    mask = torch.zeros(2, 1, 12, 12).masked_fill(torch.ones(12, 12).triu(1).bool(), float("-inf"))
    want = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)
    module = torch.nn.Identity().eval()
    with flex_by_definition():
        got, _ = client.flex_attention_forward(module, query, key, value, mask)
    torch.testing.assert_close(got.transpose(1, 2), want)


def test_scores_that_are_changed_in_another_way_are_not_recorded() -> None:
    one, slope = torch.randn(1, 2, 4, 8), torch.ones(2)

    def with_slopes(score: Tensor, *place: Tensor) -> Tensor:
        return score * slope[place[1]]

    with pytest.raises(NotImplementedError, match="flex attention with slope is not recorded"):
        attended(one, one, one, score_mod=with_slopes)


def test_grouped_products_in_float64() -> None:
    rows, matrices, ends = torch.randn(7, 8), torch.randn(3, 8, 4), torch.tensor([2, 2, 6], dtype=torch.int32)
    want = torch.nn.functional.grouped_mm(rows, matrices, offs=ends)
    with Wide():
        got = torch.nn.functional.grouped_mm(rows.double(), matrices.double(), offs=ends)
    torch.testing.assert_close(got[:6], want[:6].double(), rtol=1e-5, atol=1e-5)
    assert bool(got[6:].isnan().all())
