"""What a plan saves: multiply-adds equal to those that torch counts, and shares that say what every rank holds whole."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from shardproof.launch.cli import run
from shardproof.planner.inputs.example import caching
from shardproof.planner.layouts.multiply_adds import multiply_adds
from shardproof.planner.layouts.shares import Shares, share_split, shares
from shardproof.planner.loading.carried_plan import carried_plan
from shardproof.planner.loading.load import load
from shardproof.planner.loading.quiet import quiet
from shardproof.planner.tracing.programs import on_meta, subject_of
from shardproof.planner.twins.twin import twin
from shardproof.verify.run.reference import reference_model


def of(name: str, degree: int = 2) -> Shares:
    loaded = load(name)
    model = on_meta(loaded)
    return shares(model, carried_plan(loaded, model), degree)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "mixtral", "gpt_oss", "gpt2", "mamba2"])
def test_multiply_adds_are_those_that_torch_counts(name: str) -> None:
    loaded = twin(load(name), tp=2)
    graph = subject_of(on_meta(loaded)).graph
    (shape,) = (graph.values[number].shape for key, number in graph.inputs if key.endswith("input_ids"))
    model = reference_model(loaded, torch.device("cpu")).eval()
    with quiet():
        if model.config._attn_implementation == "sdpa":  # which torch does not count on a CPU
            model.set_attn_implementation("eager")
    ids = torch.arange(shape[0] * shape[1]).reshape(shape) % 50 + 1
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        model(input_ids=ids, **caching(model, False))
    assert multiply_adds(graph) * 2 == counted.get_total_flops()


def test_llama_splits_work_and_cache() -> None:
    found = of("llama", 4)
    assert found.compute == pytest.approx(1, abs=1e-3)
    assert found.cache == 1
    assert found.decode == pytest.approx(1, abs=1e-3)
    assert 0.5 < found.activations < 1
    assert dict(found.collectives) == {"all-gather": 1, "all-reduce": 65}
    assert not found.warning


def test_phi3_holds_the_whole_cache_on_every_rank() -> None:
    found = of("phi3")
    assert found.parameters > 0.99
    assert found.cache == 0
    assert found.compute < 0.9
    assert found.activations == 0
    assert "Every rank holds all of the cache" in found.warning


def test_more_than_one_device_is_no_share() -> None:
    assert share_split(12, 10, 2) == 0
    assert share_split(5, 10, 2) == 1
    assert share_split(10, 10, 4) == 0
    assert share_split(0, 0, 2) == 0


def test_suggest_and_verify_tell_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["suggest", "phi3", "--set", "num_hidden_layers=2", "--format", "json", "--quiet"]) == 0
    told = json.loads(capsys.readouterr().out)["shares"]
    assert {"degree", "parameters", "compute", "decode", "cache", "activations"} <= set(told)
    assert told["cache"] == 0
    assert run(["verify", "phi3", "--set", "num_hidden_layers=2", "--level", "proof", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert out.index("Every rank holds all of the cache") < out.index("split ")
