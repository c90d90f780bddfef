"""Plans as Transformers 4.57 reads them. Each was given to 4.57.6 on two ranks; `engine` is what came of it."""

import pytest

from shardproof.planner.ir.findings import Severity
from shardproof.planner.ir.plan import Plan
from shardproof.planner.loading.load import load
from shardproof.verify.clients.compile import compile_for
from shardproof.verify.clients.prove import prove_for
from shardproof.verify.clients.registry import find_dialect

OLD = find_dialect("transformers@4.57")
SIZES = {"hidden_size": "64", "num_hidden_layers": "2", "num_attention_heads": "4", "num_key_value_heads": "2"}
SIZES |= {"intermediate_size": "128", "vocab_size": "96"}
HEADS = {f"layers.*.self_attn.{name}_proj": "colwise" for name in "qkv"} | {"layers.*.self_attn.o_proj": "rowwise"}
MLP = {"layers.*.mlp.gate_proj": "colwise", "layers.*.mlp.up_proj": "colwise", "layers.*.mlp.down_proj": "rowwise"}
TABLE = {"embed_tokens": "colwise_rep"}


@pytest.mark.parametrize(
    ("plan", "sizes", "engine", "verdict"),
    [
        (HEADS | MLP, {}, "right", "proved"),
        (TABLE, {}, "right", "proved"),
        (HEADS | TABLE, {"tie_word_embeddings": "true"}, "right", "proved"),
        ({"layers.*.mlp.gate_proj": "colwise_rep", "layers.*.mlp.down_proj": "rowwise_rep"}, {}, "right", "proved"),
        (HEADS | {"embed_tokens": "rowwise"}, {}, "wrong", "not proved"),
        (HEADS | {"embed_tokens": "colwise"}, {}, "raises", "not proved"),
        (HEADS | {"layers.*.input_layernorm": "sequence_parallel"}, {}, "right", "not proved"),
        ({"layers.*.mlp.gate_proj": "packed_colwise"}, {}, "raises", "refuted"),
        (HEADS | {"layers.*.mlp.gate_projj": "colwise"}, {}, "drops the key", "refuted"),
        (MLP, {"intermediate_size": "127"}, "raises", "refuted"),
        (HEADS, {"num_key_value_heads": "1"}, "raises", "refuted"),
        (HEADS, {"num_attention_heads": "3", "num_key_value_heads": "3", "hidden_size": "48"}, "raises", "refuted"),
        ({"layers.*.mlp.gate_proj": "colwise", "layers.*.mlp.down_proj": "rowwise"}, {}, "raises", "refuted"),
    ],
)
def test_the_proof_agrees_with_two_ranks(
    plan: dict[str, str], sizes: dict[str, str], engine: str, verdict: str
) -> None:
    loaded = load("llama", overrides=SIZES | sizes)
    result = prove_for(OLD, loaded, Plan.from_json({"base_model_tp_plan": plan}))
    assert result.verdict == verdict, (engine, result.findings)
    told = [finding for finding in result.findings if finding.severity is not Severity.ERROR]
    assert verdict == "refuted" or any("modeling code" in finding.message for finding in told)


def test_the_entries_of_the_head_class_have_no_effect() -> None:
    loaded = load("llama", overrides=SIZES)
    plan = Plan.from_json({"base_model_tp_plan": HEADS, "tp_plan": {"lm_head": "colwise_rep"}})
    result = prove_for(OLD, loaded, plan)
    assert result.verdict == "proved"
    assert any("lm_head" in finding.message for finding in result.findings)


def test_a_plan_in_the_words_of_that_time() -> None:
    loaded = load("llama", overrides=SIZES)
    plan = Plan.from_json({"base_model_tp_plan": HEADS | MLP | {"embed_tokens": "embedding_rowwise"}})
    compiled = compile_for(OLD, loaded, plan)
    assert compiled.proof.verdict == "proved"
    assert compiled.plan.styles("") == HEADS | MLP | TABLE
