"""NeMo AutoModel: which plan it applies, and what the proof says of it. Each verdict was measured in NeMo 0.7.0."""

from functools import cache

import pytest

from shardproof.planner.inference.suggest import suggest
from shardproof.planner.ir.findings import Finding, Severity, Verdict
from shardproof.planner.ir.plan import Edit, Plan, TpEntry
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import carried_plan
from shardproof.planner.loading.load import LoadedModel, load
from shardproof.verify.clients.compile import compile_for
from shardproof.verify.clients.dialect import Matching, first_match
from shardproof.verify.clients.prove import prove_for
from shardproof.verify.clients.registry import find_dialect

NEMO = find_dialect("nemo")


@cache
def small(name: str, **overrides: str) -> tuple[LoadedModel, Plan]:
    loaded = load(name, overrides={"num_hidden_layers": "2", **overrides})
    return loaded, carried_plan(loaded, build(loaded))


def findings(name: str, plan: Plan | None = None, **overrides: str) -> tuple[Finding, ...]:
    loaded, carried = small(name, **overrides)
    return prove_for(NEMO, loaded, plan if plan is not None else carried, tp=2).findings


def errors(name: str, plan: Plan | None = None, **overrides: str) -> set[str]:
    found = findings(name, plan, **overrides)
    return {finding.code for finding in found if finding.severity is not Severity.WARNING}


@pytest.mark.parametrize(
    ("pattern", "path", "met"),
    [
        ("model.layers.*.mlp.up_proj", "model.layers.1.mlp.up_proj", True),
        ("model.layers.*", "model.layers.1.mlp", False),
        ("model.layers.*.mlp.*_proj", "model.layers.1.mlp.up_proj", True),
        ("up_proj", "model.up_proj", False),
    ],
)
def test_each_part_of_a_key_is_a_pattern(pattern: str, path: str, met: bool) -> None:
    assert (first_match(Matching.PARTS, [pattern], path) == pattern) is met


@pytest.mark.parametrize("name", ["llama", "qwen3", "phi", "phi3"])
def test_a_class_that_it_knows_gets_its_own_plan(name: str) -> None:
    """So a wrong entry of the model's plan does no harm there."""
    _, plan = small(name)
    wrong = Plan(tp=(*plan.tp[:-1], TpEntry("layers.*.mlp", "colwise")))
    (found,) = findings(name, wrong)
    assert (found.code, found.severity) == ("BE416", Severity.WARNING)
    assert "a plan of its own" in found.message


@pytest.mark.parametrize(("name", "code"), [("glm", "TP213"), ("olmo2", "TP206")])
def test_one_style_that_it_lacks_gives_the_whole_model_a_plan_for_other_names(name: str, code: str) -> None:
    """The engine trains glm silently wrongly (logits 4.5 apart), and raises for olmo2."""
    told, *rest = findings(name)
    assert told.message == (
        'nemo 0.7.0 replaces the whole plan by one for Llama\'s names: "embedding_rowwise" is no style of it.'
        if "embed_tokens" in str(told.place.entry)
        else 'nemo 0.7.0 replaces the whole plan by one for Llama\'s names: "rowwise_split_input" is no style of it.'
    )
    assert {finding.code for finding in rest} == {code}


@pytest.mark.parametrize("name", ["glm", "olmo2", "mixtral", "stablelm"])
def test_a_suggested_plan_has_only_styles_that_it_has(name: str) -> None:
    loaded, _ = small(name)
    compiled = compile_for(NEMO, loaded, suggest(loaded).plan)
    assert compiled.proof.verdict is Verdict.PROVED
    assert not compiled.proof.findings
    assert {entry.style for entry in compiled.plan.tp} <= set(NEMO.styles)


@pytest.mark.parametrize(
    "sizes", [{"num_key_value_heads": "3", "num_attention_heads": "6"}, {"num_key_value_heads": "1"}]
)
def test_heads_that_do_not_divide_are_refused_before_any_plan(sizes: dict[str, str]) -> None:
    assert errors("mistral", None, hidden_size="48", head_dim="8", **sizes) == {"BE414"}


def test_a_width_that_does_not_divide_raises() -> None:
    assert errors("mistral", intermediate_size="97") == {"BE414"}
    assert errors("mistral", compiled("mistral"), vocab_size="129") == set()


def test_a_tied_head_is_tied_again_to_a_table_that_stays_whole() -> None:
    assert errors("gpt2", tie_word_embeddings="true") == {"TP212"}
    assert errors("gpt2", tie_word_embeddings="false") == set()


def test_a_style_for_linear_layers_raises_elsewhere() -> None:
    plan = compiled("mistral")
    wrong = Plan(tp=(*plan.tp, TpEntry("layers.*.input_layernorm", "colwise")), head_tp=plan.head_tp)
    (found,) = (finding for finding in findings("mistral", wrong) if finding.severity is Severity.ERROR)
    assert found.code == "BE411"
    assert "takes linear layers and embeddings alone" in found.message


def test_a_sequence_parallel_norm_is_not_known() -> None:
    plan = compiled("mistral")
    norm = Plan(tp=(*plan.tp, TpEntry("layers.*.input_layernorm", "sequence_parallel")), head_tp=plan.head_tp)
    assert errors("mistral", norm) == {"TP210"}


def test_a_missing_entry_is_refuted() -> None:
    plan = compiled("mistral").edited(Edit("model.layers.*.mlp.down_proj", "rowwise", None), "model")
    assert errors("mistral", plan)


def test_gradients_of_norms_within_heads_have_to_be_summed() -> None:
    plan = compiled("qwen3_moe").edited(
        Edit("model.layers.*.self_attn.q_norm", "replicated_with_grad_allreduce", None), "model"
    )
    assert errors("qwen3_moe", plan) == {"TP207"}


@cache
def compiled(name: str) -> Plan:
    loaded, _ = small(name)
    return compile_for(NEMO, loaded, suggest(loaded).plan).plan
