"""A default config that leaves empty what its model needs."""

import pytest

from shardproof.planner.ir.errors import LoadError
from shardproof.planner.loading.build import build
from shardproof.planner.loading.load import load
from shardproof.planner.tracing.trace import trace


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("nemotron", "num_key_value_heads", 48),
        ("ministral", "head_dim", 128),
        ("deepseek_v2", "num_experts_per_tok", 2),
        ("reformer", "is_decoder", True),
        ("xmod", "default_language", "en_XX"),
    ],
)
def test_an_empty_field_follows_from_the_others(name: str, field: str, value: int) -> None:
    loaded = load(name)
    assert getattr(loaded.config, field) == value
    assert trace(build(loaded)).ops


def test_a_field_that_is_given_is_kept() -> None:
    assert load("nemotron", overrides={"num_key_value_heads": "8"}).config.num_key_value_heads == 8


def test_what_nothing_tells_stays_an_error() -> None:
    with pytest.raises(LoadError, match=r"these are empty: .*indexer_compress_ratio.*give them with --set"):
        build(load("qwen4_exp_text"))
