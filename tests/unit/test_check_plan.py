"""Is this a plan for this model at all: the sentences, and the edits that are offered."""

import pytest
from torch import nn

from shardproof.planner.ir.findings import Finding, Severity
from shardproof.planner.ir.plan import Plan, TpEntry
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import base_prefix, carried_plan
from shardproof.planner.loading.load import load
from shardproof.verify.proof.plan_form import check_plan


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    return build(load("llama", overrides={"num_hidden_layers": "2"}))


def one(model: nn.Module, *entries: tuple[str, str], head: tuple[tuple[str, str], ...] = ()) -> Finding:
    """The only finding of a plan."""
    plan = Plan(
        tp=tuple(TpEntry(*entry) for entry in (("layers.*.mlp.up_proj", "colwise"), *entries)),
        head_tp=tuple(TpEntry(*entry) for entry in head),
    )
    (finding,) = check_plan(model, plan, 2)
    return finding


def edits(finding: Finding) -> list[str]:
    return [str(edit) for edit in finding.fix.edits] if finding.fix else []


def test_unknown_style_names_the_nearest(llama: nn.Module) -> None:
    finding = one(llama, ("layers.*.mlp.down_proj", "row_wise"))
    assert (finding.code, finding.severity) == ("PL101", Severity.ERROR)
    assert finding.message == '"row_wise" is not a style of Transformers; did you mean "rowwise"?'
    assert finding.place.entry == "model.layers.*.mlp.down_proj"
    assert edits(finding) == ['change "model.layers.*.mlp.down_proj" from "row_wise" to "rowwise"']


def test_no_edit_that_would_leave_a_fault(llama: nn.Module) -> None:
    """The nearest style of `colwize` does not fit a norm, so it is named and not offered."""
    finding = one(llama, ("norm", "colwize"))
    assert finding.code == "PL101"
    assert finding.fix is None


def test_a_key_is_looked_up_exactly(llama: nn.Module) -> None:
    finding = one(llama, ("layers.*.mlp.down_projection", "rowwise"))
    assert finding.code == "PL102"
    assert 'did you mean "model.layers.*.mlp.down_proj"?' in finding.message
    assert edits(finding) == [
        'remove "model.layers.*.mlp.down_projection": "rowwise"',
        'add "model.layers.*.mlp.down_proj": "rowwise"',
    ]


def test_a_path_that_has_an_entry_is_not_given_a_second(llama: nn.Module) -> None:
    assert edits(one(llama, ("layers.*.mlp.up_projj", "colwise"))) == [
        'remove "model.layers.*.mlp.up_projj": "colwise"'
    ]


def test_a_glob_is_not_a_key(llama: nn.Module) -> None:
    finding = one(llama, ("layers.*.mlp.*", "colwise"))
    assert finding.code == "PL102"
    assert 'such as "model.layers.*.mlp.gate_proj"' in finding.needed
    assert finding.fix is None


@pytest.mark.parametrize("head", [False, True])
def test_keys_start_at_the_class_that_carries_them(llama: nn.Module, head: bool) -> None:
    """A base model's key in the head's plan, and the reverse."""
    if head:
        finding = one(llama, head=(("layers.*.mlp.down_proj", "rowwise"),))
    else:
        finding = one(llama, ("model.layers.*.mlp.down_proj", "rowwise"))
    assert finding.code == "PL102"
    assert 'did you mean "model.layers.*.mlp.down_proj"?' in finding.message


def test_a_layer_number_is_written_as_a_star(llama: nn.Module) -> None:
    assert "model.layers.*.mlp.down_proj" in one(llama, ("layers.0.mlp.down_proj", "rowwise")).message


def test_a_parameter_is_a_key(llama: nn.Module) -> None:
    plan = Plan(tp=(TpEntry("layers.*.mlp.up_proj.weight", "colwise"),))
    assert check_plan(llama, plan, 2) == ()


@pytest.mark.parametrize(
    ("pattern", "style", "attribute"),
    [
        ("embed_tokens", "colwise", "out_features"),
        ("norm", "rowwise", "in_features"),
        ("layers.*.mlp.down_proj", "mla_kv_a_proj", "qk_rope_head_dim"),
    ],
)
def test_a_style_reads_an_attribute(llama: nn.Module, pattern: str, style: str, attribute: str) -> None:
    finding = one(llama, (pattern, style))
    assert finding.code == "PL103"
    assert f'The style "{style}" reads {attribute}' in finding.message


def test_the_fix_of_an_embedding_is_offered(llama: nn.Module) -> None:
    assert edits(one(llama, ("embed_tokens", "colwise"))) == [
        'change "model.embed_tokens" from "colwise" to "embedding_rowwise"'
    ]


def test_no_plan_and_a_plan_that_shards_nothing(llama: nn.Module) -> None:
    assert [finding.code for finding in check_plan(llama, Plan(), 2)] == ["PL104"]
    assert check_plan(llama, Plan(), 1) == ()
    (finding,) = check_plan(llama, Plan(tp=(TpEntry("norm", "replicate"),)), 2)
    assert (finding.code, finding.severity) == ("PL105", Severity.WARNING)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "phi3", "mixtral", "deepseek_v3"])
def test_released_plans_have_the_right_form(name: str) -> None:
    loaded = load(name)
    model = build(loaded)
    assert check_plan(model, carried_plan(loaded, model), 2) == ()


def test_a_key_of_the_model_itself_that_matches_nothing_is_a_warning() -> None:
    """One plan serves dense and sparse configs of Qwen2-MoE; Transformers warns and goes on."""
    loaded = load("qwen2_moe")
    model = build(loaded)
    findings = check_plan(model, carried_plan(loaded, model), 2)
    assert {(finding.code, finding.severity) for finding in findings} == {("PL102", Severity.WARNING)}


def test_every_fault_is_found_at_once(llama: nn.Module) -> None:
    plan = Plan(tp=(TpEntry("a", "colwise"), TpEntry("norm", "x"), TpEntry("layers.*.mlp", "colwise")))
    assert [finding.code for finding in check_plan(llama, plan, 2)] == ["PL102", "PL101", "PL103"]


def test_expert_entries_are_checked_too(llama: nn.Module) -> None:
    plan = Plan(tp=(TpEntry("layers.*.mlp.up_proj", "colwise"),), ep=(TpEntry("layers.*.experts", "grouped_gemm"),))
    assert [finding.place.entry for finding in check_plan(llama, plan, 2)] == ["model.layers.*.experts"]
    assert base_prefix(llama) == "model"
