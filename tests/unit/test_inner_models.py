"""Models in a model that read its config: they hear its keys as their own, and no others."""

import pytest

from shardproof import load, prove
from shardproof.planner.ir.findings import Verdict
from shardproof.planner.ir.plan import Plan
from shardproof.planner.transformers_facts.composed_plan import PlanReader, composed
from tests.versions import SPLITS_TABLES, since

OWNERS = (
    PlanReader("model"),
    PlanReader("model.encoder", "embedding_rowwise", inner=True),
    PlanReader("model.text", "embedding_rowwise"),
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
    found = composed({"model.layers.*.fc1": "colwise", **entry}, OWNERS, "model")
    assert found["model.encoder.embed_tokens"] == style


def test_a_table_of_a_config_of_its_own_hears_its_name_and_needs_an_entry_of_its_model() -> None:
    assert "model.text.embed_tokens" not in composed({"model.layers.*.fc1": "colwise"}, OWNERS, "model")
    found = composed({"model.text.embed_tokens": "replicate"}, OWNERS, "model")
    assert found["model.text.embed_tokens"] == "replicate"


def test_a_plan_of_the_head_alone_shards_no_table() -> None:
    assert composed({"lm_head": "colwise"}, OWNERS, "model") == {"lm_head": "colwise"}


def test_a_key_of_the_config_is_read_by_every_inner_model() -> None:
    sizes = {"d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 64, "pad_token_id": 0}
    bart = load("bart", overrides={**sizes, "encoder_attention_heads": 4, "decoder_attention_heads": 4})
    table = {"embed_tokens": "replicate"} if SPLITS_TABLES else {}
    keys = {"layers.*.fc1": "colwise", "layers.*.fc2": "rowwise", **table}
    found = prove(bart, Plan.from_json({"base_model_tp_plan": keys}), tp=2)
    assert (found.verdict, found.findings) == (Verdict.PROVED, ())


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
