"""Tables of inner models, which Transformers shards without an entry: only the config's `embed_tokens` is heard for them."""

import pytest

from shardproof import load, prove
from shardproof.planner.ir.findings import Verdict
from shardproof.planner.ir.plan import Plan
from shardproof.planner.transformers_facts.table_owners import TableOwner, with_tables
from tests.versions import since

OWNERS = (
    TableOwner("model"),
    TableOwner("model.encoder", "embedding_rowwise", inner=True),
    TableOwner("model.text", "embedding_rowwise"),
)
LAYERS = {"encoder.layers.*.fc1": "colwise", "encoder.layers.*.fc2": "rowwise"}


@pytest.mark.parametrize(
    ("entry", "style"),
    [
        ({}, "embedding_rowwise"),
        ({"model.encoder.embed_tokens": "replicate"}, "embedding_rowwise"),
        ({"model.embed_tokens": "replicate"}, "replicate"),
    ],
)
def test_an_inner_table_hears_only_the_configs_key(entry: dict[str, str], style: str) -> None:
    composed = with_tables({"model.layers.*.fc1": "colwise", **entry}, OWNERS, "model")
    assert composed["model.encoder.embed_tokens"] == style


def test_a_table_of_a_config_of_its_own_hears_its_name_and_needs_an_entry_of_its_model() -> None:
    assert "model.text.embed_tokens" not in with_tables({"model.layers.*.fc1": "colwise"}, OWNERS, "model")
    composed = with_tables({"model.text.embed_tokens": "replicate"}, OWNERS, "model")
    assert composed["model.text.embed_tokens"] == "replicate"


def test_a_plan_of_the_head_alone_shards_no_table() -> None:
    assert with_tables({"lm_head": "colwise"}, OWNERS, "model") == {"lm_head": "colwise"}


@since((5, 21), "splits tables without an entry")
@pytest.mark.parametrize(
    ("entry", "verdict"),
    [("decoder.embed_tokens", Verdict.REFUTED), ("embed_tokens", Verdict.PROVED)],
)
def test_a_whole_table_of_a_decoder(entry: str, verdict: Verdict) -> None:
    sizes = {"d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 64, "pad_token_id": 0}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 96}
    whisper = load("whisper", overrides={**sizes, **heads})
    plan = Plan.from_json({"base_model_tp_plan": {entry: "replicate", **LAYERS}})
    assert prove(whisper, plan, tp=2).verdict is verdict
