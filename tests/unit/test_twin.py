"""Twins: small, of the same structure, and of the same program."""

import math

import pytest
import torch
from torch import nn

from shardproof.planner.ir.plan import generic
from shardproof.planner.loading.build import build
from shardproof.planner.loading.configs.field_roles import role_of
from shardproof.planner.loading.load import load
from shardproof.planner.tracing.trace import trace
from shardproof.planner.twins.depth import depth
from shardproof.planner.twins.random_state import random_state
from shardproof.planner.twins.sizes import LENGTH, RUNGS, shrunk
from shardproof.planner.twins.small_configs import SMALL, beside_sizes, by_names, fields_of
from shardproof.planner.twins.twin import twin
from tests.versions import wants_type


def _program(name: str, *, small: bool, tp: int) -> set[tuple[str, str]]:
    """Every op with its module, repeats apart: how many layers there are is the one thing a twin may change."""
    loaded = load(name)
    graph = trace(build(twin(loaded, tp=tp) if small else loaded))
    return {(op.target, generic(op.module)) for op in graph.ops if op.target != "repeat"}


@pytest.mark.parametrize("name", ["gptj", "bamba", "llama4_text", "gemma3n_text", "blenderbot", "t5"])
def test_a_twin_runs_the_program_of_the_model(name: str) -> None:
    assert _program(name, small=True, tp=2) == _program(name, small=False, tp=2)


@pytest.mark.parametrize("name", ["fuyu", "gemma3", "gemma4_unified"])
def test_a_model_of_models_has_a_small_twin(name: str) -> None:
    made = build(twin(load(name), tp=2))
    assert sum(parameter.numel() for parameter in made.parameters()) <= SMALL


def test_a_list_that_numbers_the_layers_is_no_kind_of_each() -> None:
    fields: dict[str, object] = {"num_hidden_layers": 6, "moe_layers": list(range(6)), "kinds": ["a", "b"] * 3}
    cut = depth(fields, {"num_hidden_layers": "layers"}, least=2)
    assert cut == {"num_hidden_layers": 2, "moe_layers": [0, 1], "kinds": ["a", "b"]}


def test_layers_that_share_are_as_large_a_part_of_all() -> None:
    fields: dict[str, object] = {"num_hidden_layers": 8, "num_kv_shared_layers": 4, "kinds": list("abababab")}
    roles = {name: role for name in fields if (role := role_of(name))}
    assert depth(fields, roles, least=4)["num_kv_shared_layers"] == 2


def test_a_shallow_model_is_as_deep_as_its_stages_ask() -> None:
    assert twin(load("bloom"), tp=1, pp=4).config.num_hidden_layers == 8
    assert twin(load("bloom"), tp=2).config.num_hidden_layers == 2


def test_heads_of_a_mixer_fill_its_width() -> None:
    config = twin(load("bamba"), tp=2, pp=2).config
    assert config.mamba_n_heads * config.mamba_d_head == config.mamba_expand * config.hidden_size


def test_heads_are_kept_where_the_code_divides_them() -> None:
    """codegen cuts its heads in four, whatever the config says."""
    assert twin(load("codegen"), tp=1, pp=2).config.num_attention_heads == 16


class _Left(nn.Module):
    """Leaves its memory as it is, as a constructor that waits for a checkpoint does."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = nn.Parameter(torch.ones(6))
        self.left = nn.Parameter(torch.tensor([float("nan"), float("inf"), -1e30, 1.0, 0.0, 2.0]))


def test_random_weights_do_not_start_from_memory_that_nobody_wrote() -> None:
    state = random_state(_Left())
    assert state["left"].abs().max() < 5
    assert 0 < (state["kept"] - 1).abs().max() < 2


def test_a_pattern_of_layers_is_repeated_less_often() -> None:
    fields: dict[str, object] = {"num_layers": 24, "attention_types": [[["global", "local"], 12]]}
    cut = depth(fields, {"num_layers": "layers"}, least=3)
    assert cut == {"num_layers": 4, "attention_types": [[["global", "local"], 2]]}


def test_sizes_of_single_layers_keep_their_ratio_and_their_sums() -> None:
    dims = {"qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "head_dim": 256}
    own = {"05": {"kv_lora_rank": 1024, "qk_nope_head_dim": 192}}
    fields: dict[str, object] = {"num_hidden_layers": 8, "kv_lora_rank": 512, "per_layer_config": own, **dims}
    small = shrunk(fields, tp=2, least_layers=2, rung=RUNGS[0])
    head, rope, rank = (small[name] for name in ("head_dim", "qk_rope_head_dim", "kv_lora_rank"))
    assert isinstance(head, int) and isinstance(rope, int) and isinstance(rank, int)
    assert small["num_hidden_layers"] == 2
    assert small["per_layer_config"] == {"1": {"kv_lora_rank": 2 * rank, "qk_nope_head_dim": head - rope}}


@wants_type("kimi_linear")
def test_fields_that_a_class_writes_under_another_name_are_cut() -> None:
    """kimi_linear takes `num_local_experts` and writes `num_experts`."""
    config = twin(load("kimi_linear"), tp=4).config
    assert (config.num_experts, config.num_experts_per_token) == (8, 2)
    assert fields_of(load("kimi_linear").config)["num_local_experts"] == 256


def test_widths_that_make_up_another_are_divided_with_it() -> None:
    """reformer's two axes of positions fill its width, and their grid what it trains on."""
    config = twin(load("reformer"), tp=2).config
    assert sum(config.axial_pos_embds_dim) == config.hidden_size < 256
    assert math.prod(config.axial_pos_shape) == LENGTH


def test_dropout_is_off_where_sizes_are_found_by_trial() -> None:
    assert beside_sizes(load("reformer")).hidden_dropout_prob == 0.0


def test_a_width_that_the_class_derives_is_derived_again() -> None:
    """`qk_head_dim` is the sum of two widths; the config knows it as a number of its own."""
    loaded = load("longcat_flash")
    small = next(by_names(loaded, tp=4, pp=1, derive=True))
    assert small.qk_head_dim == small.qk_nope_head_dim + small.qk_rope_head_dim < loaded.config.qk_head_dim
    assert list(by_names(load("gpt2"), tp=2, pp=1, derive=True)) == []
