"""`plan layout`: legal and illegal layouts, exact bytes, the cache, the Pareto set, and what the command prints."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import pytest
from transformers import PreTrainedConfig

from shardproof.launch.cli import run
from shardproof.launch.output.layouts_text import ServedModel, commands
from shardproof.planner.ir.degrees import Degrees
from shardproof.planner.ir.placement import R, Shard
from shardproof.planner.layouts.cost import (
    CachedTensor,
    Facts,
    Load,
    Machine,
    Parameter,
    Per,
    RankTraffic,
    Traffic,
    rank_memory,
    sent,
)
from shardproof.planner.layouts.measure import measure
from shardproof.planner.layouts.search import Choice, search
from shardproof.planner.layouts.space import Layout, layouts, why_not
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import base_prefix, carried_plan
from shardproof.planner.loading.load import load
from shardproof.planner.propagation.assign import Assigned, assign
from shardproof.planner.propagation.collectives import Kind
from shardproof.planner.tracing.decode_cache import Tensors, cache_tensors
from shardproof.planner.tracing.trace import trace

Captured = pytest.CaptureFixture[str]
Cache: TypeAlias = "tuple[Tensors, ...]"

TWO = Degrees((1, 2), {})
FACTS = Facts(
    parameters=(
        Parameter((100, 8), Shard(0), frozenset({0, 5}), looked_up=frozenset({0})),
        *(Parameter((8, 8), Shard(0), frozenset({layer})) for layer in range(1, 5)),
        Parameter((8,), R, frozenset({5})),
    ),
    traffic=(
        *(Traffic(Kind.ALL_REDUCE, layer, 8, False) for layer in range(1, 5)),
        Traffic(Kind.ALL_GATHER, 5, 101, False),
        Traffic(Kind.ALL_REDUCE, 5, 8, True),
    ),
    depth=4,
    hidden=8,
    cache=(*((CachedTensor(32),) for _ in range(3)), (CachedTensor(32, split=False),)),
)


def test_every_layout_of_the_devices() -> None:
    found = list(layouts(12))
    assert len(found) == len(set(found)) == 18
    assert all(one.tp * one.pp * one.dp == 12 for one in found)


def test_layouts_with_experts_have_them_on_the_tensor_parallel_ranks() -> None:
    found = [one for one in layouts(4, experts=True) if one.experts]
    assert [str(one) for one in found] == [
        "tp 2 = ep 2 x pp 1 x dp 2",
        "tp 2 = ep 2 x pp 2 x dp 1",
        "tp 4 = ep 4 x pp 1 x dp 1",
    ]
    assert [one.ep for one in layouts(2, experts=True)] == [1, 1, 1, 2]


def test_a_summed_gradient_counts_once_a_step() -> None:
    summed = Traffic(Kind.ALL_REDUCE, 1, 16, backward=True, per=Per.STEP)
    facts = replace(FACTS, traffic=(*FACTS.traffic, summed))
    told = sent(facts, range(6), Load(10, 4, train=True), tp=2)
    assert (told.count, told.bytes_per_token, told.bytes_per_step) == (7, (4 * 8 + 51 + 8) * 2, 32)


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        (Layout(2, 2, 2), None),
        (Layout(4, 1, 1), "tp 4: the plan: more ranks than degrees are told for"),
        (Layout(1, 5, 1), "pp 5: there are 4 layers, and every stage needs one"),
        (Layout(1, 1, 4), "dp 4: a batch of 3 leaves replicas without a sequence"),
    ],
)
def test_why_a_layout_is_not_legal(layout: Layout, reason: str | None) -> None:
    assert why_not(layout, degrees=TWO, depth=4, batch=3) == reason


def test_bytes_of_a_rank() -> None:
    """By hand: a table of 100 x 8 that is tied, four layers of 8 x 8, a norm of 8, in two bytes each."""
    whole = rank_memory(FACTS, range(6), Load(10, 4), tp=1, dp=2)
    assert (whole.parameters, whole.gradients, whole.optimizer) == ((800 + 256 + 8) * 2, 0, 0)
    assert whole.cache == 4 * 32 * 2 * 2
    half = rank_memory(FACTS, range(6), Load(10, 4, train=True), tp=2, dp=1)
    assert half.parameters == half.gradients == (400 + 128 + 8) * 2
    assert (half.optimizer, half.cache) == (2 * half.parameters + 4 * 6, 0)
    last = rank_memory(FACTS, [3, 4, 5], Load(10, 4), tp=2, dp=1)
    assert last.parameters == (400 + 64 + 8) * 2
    assert last.cache == (16 + 32) * 4 * 2


def test_a_gather_that_does_not_divide_is_padded_in_every_row() -> None:
    """Two streams of 102 words each: every one is cut into parts of 26."""
    assert Traffic(Kind.ALL_GATHER, 0, 204, False, width=102).per_rank(4) == 52
    assert Traffic(Kind.ALL_GATHER, 0, 204, False).per_rank(4) == 51


def test_what_a_rank_sends() -> None:
    serving, training = (sent(FACTS, range(6), Load(10, 4, train=train), tp=2) for train in (False, True))
    assert (serving.count, serving.bytes_per_token) == (5, (4 * 8 + 51) * 2)
    assert (training.count, training.bytes_per_token) == (6, (4 * 8 + 51 + 8) * 2)
    assert sent(FACTS, range(6), Load(10, 4), tp=1).count == 0


def test_the_search_keeps_the_memory_and_marks_the_pareto_set() -> None:
    load_ = Load(10, 4)
    most = rank_memory(FACTS, range(6), load_, tp=1, dp=4).total
    found = search(FACTS, TWO, Machine(4, most - 1), load_)
    assert found.choices
    assert all(choice.held.total < most for choice in found.choices)
    times = [choice.seconds for choice in found.choices]
    assert times == sorted(times)
    for choice in found.choices:
        better = [o for o in found.choices if o.held.total <= choice.held.total and o.seconds <= choice.seconds]
        assert choice.pareto == (better == [choice])
    reasons = dict(found.illegal)
    assert "memory" in reasons[Layout(1, 1, 4)]
    assert len(found.choices) + len(found.illegal) == 6
    assert all(sum(choice.layers) == 4 for choice in found.choices)


def _elements(cache: Cache) -> int:
    return sum(count for layer in cache for count, _ in layer)


@pytest.mark.parametrize(("name", "elements"), [("llama", 2 * 2 * 4 * 32), ("deepseek_v3", 2 * (512 + 64))])
def test_the_cache_is_what_the_model_keeps(name: str, elements: int) -> None:
    """Per token, of two layers: keys and values of all heads, or the compressed latent, which ranks do not share."""
    small = {"num_hidden_layers": "2"}
    if name == "llama":
        small |= {"hidden_size": "128", "num_attention_heads": "4"}
    loaded = load(name, overrides=small)
    model = build(loaded)
    whole = cache_tensors(model, Assigned({}, {}), 1, context=64)
    assert whole is not None
    assert _elements(whole) == elements * 64
    prefix = base_prefix(model)
    assigned = assign(trace(model), carried_plan(loaded, model).styles(prefix), base_prefix=prefix)
    part = cache_tensors(model, assigned, 2, context=64)
    assert part is not None
    assert _elements(part) * (2 if name == "llama" else 1) == _elements(whole)


@pytest.mark.parametrize("name", ["mamba", "jamba"])
def test_states_and_keys_of_one_sequence(name: str) -> None:
    """A state-space layer keeps as much whatever the context; an attention layer of a hybrid keeps keys and values a token."""
    model = build(load(name, overrides={"num_hidden_layers": "8"}))
    short, long = (cache_tensors(model, Assigned({}, {}), 1, context=context) for context in (16, 64))
    assert short is not None
    assert long is not None
    config = model.config
    assert isinstance(config, PreTrainedConfig)
    inner = config.hidden_size * (config.expand if name == "mamba" else config.mamba_expand)
    kernel, states = (
        (config.conv_kernel, config.state_size) if name == "mamba" else (config.mamba_d_conv, config.mamba_d_state)
    )
    kinds = ["mamba"] * 8 if name == "mamba" else config.layers_block_type
    wide = (
        2
        * getattr(config, "num_key_value_heads", 0)
        * (config.hidden_size // getattr(config, "num_attention_heads", 1))
    )
    for context, found in ((16, short), (64, long)):
        assert [sum(count for count, _ in layer) for layer in found] == [
            inner * (kernel + states) if kind == "mamba" else wide * context for kind in kinds
        ]


def test_weights_that_only_long_texts_reach_have_gradients_in_long_texts() -> None:
    """Some layers compress every 128 tokens into one: the weights that do so are of no use to a short text."""
    loaded = load("deepseek_v4", overrides={"num_hidden_layers": "4"})
    model, plan = build(loaded), carried_plan(loaded, build(loaded))
    short, long = (measure(model, plan, Degrees((1,), {}), context=context, train=True) for context in (64, 256))
    more = [two for one, two in zip(short.parameters, long.parameters, strict=True) if two.trained and not one.trained]
    assert any(128 in one.shape for one in more)
    assert sum(long.gradients(1)) == sum(short.gradients(1)) + sum(one.gradient(1) for one in more)


def test_the_command(capsys: Captured) -> None:
    asked = ["layout", "llama", "--devices", "4", "--memory", "24GiB", "--set", "num_hidden_layers=4", "-q"]
    assert run([*asked, "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert {(one["tp"], one["pp"], one["dp"]) for one in data["layouts"]} == {
        (one.tp, one.pp, one.dp) for one in layouts(4)
    }
    assert all(sum(one["bytes"].values()) == 2 * one["bytes"]["total"] for one in data["layouts"])
    assert run([*asked, "--train", "adamw"]) == 0
    out = capsys.readouterr().out
    assert "training with AdamW" in out
    assert "torchrun --nnodes 1 --nproc-per-node 4" in out


def _choice(layout: Layout) -> Choice:
    stage = rank_memory(FACTS, range(6), Load(10, 4), tp=1, dp=1)
    return Choice(layout, (4,), stage, RankTraffic(5, 10), 1.0, (stage,))


@pytest.mark.parametrize(
    ("layout", "nodes", "train", "text"),
    [
        (
            Layout(2, 1, 2),
            1,
            True,
            "--nnodes 1 --nproc-per-node 4 train.py|tp_size=2, pp_size=1, dp_replicate_size=2))",
        ),
        (Layout(2, 2, 1), 2, True, "--nnodes 2 --nproc-per-node 2 train.py|tp_size=2, pp_size=2))"),
        (Layout(1, 2, 2), 1, True, "train.py|pp_size=2)); the 2 replicas are the script's own"),
        (Layout(2, 1, 2), 2, False, "--nnodes 1 --nproc-per-node 2 serve.py|pp_size=1)); 2 jobs like it"),
        (Layout(4, 1, 1), 2, False, "--nnodes 2 --nproc-per-node 2 serve.py|tp_size=4, pp_size=1))"),
    ],
)
def test_transformers_is_told_of_the_replicas(layout: Layout, nodes: int, train: bool, text: str) -> None:
    *_, told = commands(ServedModel("llama"), _choice(layout), Machine(4, 1e9, nodes), Load(10, 4, train=train))
    for part in text.split("|"):
        assert part in told


@pytest.mark.parametrize(
    ("served", "words"),
    [
        (ServedModel("llama"), ["vllm", "serve", "CHECKPOINT"]),
        (ServedModel("b", "a b; touch X"), ["vllm", "serve", "a b; touch X"]),
        (ServedModel("b", "$(id)/b`id`"), ["vllm", "serve", "$(id)/b`id`"]),
        (ServedModel("b", "/models/b", custom_code=True), ["vllm", "serve", "/models/b"]),
    ],
)
def test_commands_are_quoted_and_complete(served: ServedModel, words: list[str]) -> None:
    vllm, sglang, _ = commands(served, _choice(Layout(2, 1, 1)), Machine(2, 1e9, 1), Load(10, 4))
    assert shlex.split(vllm)[:3] == words
    assert shlex.split(sglang)[:5] == ["python", "-m", "sglang.launch_server", "--model-path", words[2]]
    assert all(("--trust-remote-code" in shlex.split(line)) is served.custom_code for line in (vllm, sglang))


def test_bytes_that_data_decides_are_told_as_estimated(capsys: Captured) -> None:
    """An adapter for each language, of the rows in that language."""
    asked = ["layout", "xmod", "--devices", "2", "--memory", "24GiB", "--set", "num_hidden_layers=2", "-q"]
    assert run([*asked, "--format", "json"]) == 0
    told = {one["tp"]: one["collective_bytes_estimated"] for one in json.loads(capsys.readouterr().out)["layouts"]}
    assert told == {1: False, 2: True}
    assert run(asked) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "tp 2 x pp 1 x dp 1" in line)
    assert "  ~ " in line


def test_nothing_fits(capsys: Captured) -> None:
    assert run(["layout", "llama", "--devices", "2", "--memory", "1MB", "--set", "num_hidden_layers=2", "-q"]) == 1
    assert "no layout is legal: give more devices or memory" in capsys.readouterr().out


def test_a_plan_that_is_wrong_is_not_mended_by_memory(tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "plan.json"
    file.write_text('{"base_model_tp_plan": {"layers.*.self_attn.q_pro": "colwise"}}')
    asked = ["layout", "llama", "--devices", "2", "--memory", "80GiB", "--set", "num_hidden_layers=2", "-q"]
    assert run([*asked, "--plan", str(file)]) == 1
    assert "no layout is legal, whatever the memory:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--devices", "4", "--memory", "lots"],
            "a size is a number with a unit, such as 80GiB or 450GB/s, not 'lots'",
        ),
        (["--devices", "4", "--memory", "80GiB", "--nodes", "3"], "4 devices do not divide evenly over 3 nodes"),
    ],
)
def test_misuse(arguments: list[str], sentence: str, capsys: Captured) -> None:
    assert run(["layout", "llama", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_a_forward_that_returns_nothing_cannot_be_laid_out(tmp_path: Path, capsys: Captured) -> None:
    code = "import torch\nclass Model(torch.nn.Module):\n    def forward(self, x): return None\n"
    (tmp_path / "model.py").write_text(code)
    options = ["--input", "x: float[2, 8]", "--trust-remote-code", "--devices", "2", "--memory", "1GiB"]
    assert run(["layout", f"{tmp_path}/model.py:Model", *options]) == 3
    assert "nothing is known: it returns no tensor." in capsys.readouterr().err


def test_a_size_of_zero_forbids_degrees_and_nothing_else(capsys: Captured) -> None:
    small = ["--set", "hidden_size=64", "--set", "num_hidden_layers=1", "--set", "intermediate_size=0"]
    assert run(["layout", "llama", *small, "--devices", "2", "--memory", "100GiB", "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {layout["tp"] for layout in told["layouts"]} == {1}
