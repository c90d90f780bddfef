"""A traced forward as data."""

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from shardproof.planner.ir.graph import Graph
from shardproof.planner.ir.graph_json import graph_from_json, graph_to_json
from shardproof.planner.loading.build import build
from shardproof.planner.loading.load import load
from shardproof.planner.propagation.assign import assign
from shardproof.planner.tracing.meta_answers.result_forms import same_form
from shardproof.planner.tracing.rank_program import trace_local
from shardproof.planner.tracing.recorded_run import TraceError, Tracing
from shardproof.planner.tracing.trace import trace


@pytest.fixture(scope="module")
def llama() -> Graph:
    return trace(build(load("llama")))


def test_every_op_has_its_module_and_line(llama: Graph) -> None:
    linears = [op for op in llama.ops if op.target == "linear"]
    assert linears[0].module == "model.layers.0.self_attn.q_proj"
    assert all(
        op.source is not None and op.source.file == "transformers/models/llama/modeling_llama.py" for op in linears
    )


def test_a_kind_of_layer_runs_once(llama: Graph) -> None:
    assert sum(op.target == "repeat" for op in llama.ops) == 31
    assert llama.module_of["model.layers.31"].repeats == "model.layers.0"


def test_cost_does_not_grow_with_depth() -> None:
    deep = trace(build(load("llama", overrides={"num_hidden_layers": "48"})))
    shallow = trace(build(load("llama", overrides={"num_hidden_layers": "8"})))
    assert len(deep.ops) - len(shallow.ops) == 40


def test_layers_of_two_kinds_both_run() -> None:
    graph = trace(build(load("deepseek_v3")))
    assert graph.module_of["model.layers.3"].repeats is None
    assert graph.module_of["model.layers.2"].repeats == "model.layers.0"


def test_a_layer_number_that_another_attribute_equals_is_no_kind() -> None:
    graph = trace(build(load("mixtral")))
    assert graph.module_of["model.layers.2"].repeats == "model.layers.0"


class _Layer(nn.Module):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.act = act

    def forward(self, states: torch.Tensor, first: torch.Tensor, seen: torch.Tensor) -> Any:
        return self.act(states) + first, seen


class _Stack(nn.Module):
    """Layers that share one activation, hand one value through, and the first of which is given one value twice."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.SiLU()
        self.layers = nn.ModuleList(_Layer(act) for _ in range(4))

    def forward(self, first: torch.Tensor, seen: torch.Tensor) -> Any:
        states = first
        for layer in self.layers:
            states, seen = layer(states, first, seen)
        return states, seen


def test_what_layers_share_and_hand_through() -> None:
    first, seen = torch.empty(2, 3, device="meta"), torch.empty(2, device="meta")
    graph = trace(_Stack(), {"first": first, "seen": seen})
    assert dict(graph.outputs)["1"] == dict(graph.inputs)["seen"], "handed through, in repeated layers too"
    assert [(path, graph.module_of[path].repeats) for path in ("layers.1", "layers.3")] == [
        ("layers.1", None),  # called otherwise than the first, which is given one value twice
        ("layers.3", "layers.1"),
    ]
    ran = [op.module for op in graph.ops if op.target != "repeat"]
    assert ran == ["layers.0.act", "layers.0", "layers.1.act", "layers.1"], "a shared module runs where it is called"


def test_json_round_trip(llama: Graph) -> None:
    assert graph_from_json(json.loads(json.dumps(graph_to_json(llama)))) == llama


def test_prints_one_op_a_line(llama: Graph) -> None:
    lines = str(llama).splitlines()
    assert len(lines) == len(llama.ops) + 2
    assert "linear(" in lines[30] or any("q_proj.weight" in line for line in lines)


def test_reading_a_graph_needs_no_torch(tmp_path: object) -> None:
    code = "import sys, shardproof.planner.ir.graph; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class _Choosy(nn.Module):
    """Branches and loops over data."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = (x > 0).nonzero()
        if (x == 0).all():
            return x
        for row in rows:
            x = x + row[0]
        x[x > 1] = 0.0
        return x.clone().add_(1)


def code_line(function: Callable[..., object], text: str) -> int:
    """The line of a function that holds a text."""
    lines, first = inspect.getsourcelines(function)
    return first + next(at for at, line in enumerate(lines) if text in line)


def test_data_dependent_code_is_traced_and_noted() -> None:
    graph = Tracing(_Choosy()).run({"x": torch.empty(4, 6, device="meta")})
    assert [op.target for op in graph.ops].count("aten.nonzero") == 1
    assert [line.line for line in graph.branches] == [code_line(_Choosy.forward, "if (x == 0)")]


class _Writes(nn.Module):
    """Writes into a view."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.zeros_like(x)
        y[:, :2] = x[:, :2]
        return y * 2


def test_a_write_into_a_view_reaches_its_base() -> None:
    graph = Tracing(_Writes()).run({"x": torch.empty(4, 6, device="meta")})
    write = next(op for op in graph.ops if op.target == "view_write")
    product = next(op for op in graph.ops if op.target == "aten.mul")
    assert product.inputs == write.outputs


class _Fails(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(5, 5)


def test_a_failing_forward_says_where() -> None:
    with pytest.raises(TraceError, match="shape") as caught:
        Tracing(_Fails()).run({"x": torch.empty(4, 6, device="meta")})
    assert caught.value.failed is not None
    assert caught.value.failed.target == "aten.view"
    assert caught.value.source is not None
    assert caught.value.source.file.endswith("test_trace.py")


def test_a_local_trace_gives_the_model_back() -> None:
    model = build(load("llama"))
    graph = trace(model)
    before = {name: tuple(p.shape) for name, p in model.named_parameters()}
    plan = {"model.layers.*.mlp.gate_proj": "colwise", "model.layers.*.mlp.up_proj": "colwise"}
    plan["model.layers.*.mlp.down_proj"] = "rowwise"
    local = trace_local(model, assign(graph, plan, base_prefix="model"), 2)
    assert any(op.target == "tp.reduce" for op in local.ops)
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == before
    assert trace(model) == graph


def test_a_number_that_counts_the_layers_is_no_kind() -> None:
    model = build(load("llama", overrides={"num_hidden_layers": "3"}))
    for layer, number in zip(model.model.layers, [2, 4, 6], strict=True):  # type: ignore[union-attr, arg-type]  # a ModuleList
        layer.self_attn.order = number
    assert trace(model).module_of["model.layers.2"].repeats == "model.layers.0"


def test_a_number_that_switches_something_on_is_a_kind() -> None:
    model = build(load("llama", overrides={"num_hidden_layers": "3"}))
    for layer, number in zip(model.model.layers, [0.0, 0.5, 0.7], strict=True):  # type: ignore[union-attr, arg-type]
        layer.self_attn.order = number
    assert trace(model).module_of["model.layers.1"].repeats is None


def test_a_remembered_result_is_that_of_the_same_dtype() -> None:
    ids = torch.empty(3, 4, dtype=torch.long, device="meta")
    for _ in range(2):
        assert same_form(torch.ops.aten.add.Tensor, (ids, 1), {}).dtype is torch.long
        assert same_form(torch.ops.aten.add.Tensor, (ids, 1.0), {}).dtype is torch.float32
        assert same_form(torch.ops.aten.add.Tensor, (ids.t(), 1), {}).stride() == ids.t().stride()


def test_a_loop_over_experts_runs_the_last_one_too() -> None:
    """Longcat's last experts pass on what they are given, by a branch of their own."""
    graph = trace(build(load("longcat_flash", overrides={"num_layers": "1"})))
    assert "model.layers.0.mlp.experts.identity_expert" in {call.module for call in graph.calls}


def test_a_last_place_that_no_search_finds_is_not_looked_at() -> None:
    """Nemotron-H counts one class more than it has experts, for tokens that are elsewhere."""
    graph = trace(build(load("nemotron_h")))
    assert any(op.target == "aten.index_add_" for op in graph.ops)


class _PartPerExpert(nn.Module):
    """Each expert takes the rows between two numbers that are data, as Aria's experts do up to Transformers 5.17."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2, 4, 6))

    def forward(self, given: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        made = given.new_zeros(len(given), 6)
        for expert in range(2):
            start, end = ends[expert], ends[expert + 1]
            made[start:end] = given[start:end] @ self.weight[expert]
        return made


def test_a_slice_between_numbers_that_are_data_holds_rows() -> None:
    inputs = {"given": torch.empty(8, 4, device="meta"), "ends": torch.empty(3, dtype=torch.long, device="meta")}
    graph = trace(_PartPerExpert().to("meta"), inputs)
    assert sum(op.target == "read" for op in graph.ops) == 8
    shapes = [graph.values[op.outputs[0]].shape for op in graph.ops if op.target == "matmul"]
    assert shapes == [(3, 6), (3, 6)]


class _Remembers(nn.Module):
    """Makes a mask at its first call, as old code does, and fills it with a number that is a tensor."""

    mask: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.made = dict[int, torch.Tensor]()

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        if not self.made:
            least: Any = torch.tensor(torch.finfo(given.dtype).min, device=given.device)
            self.register_buffer("mask", torch.full((4, 4), least).triu(1), persistent=False)
            self.made[4] = given.sum()
        return given + self.mask + self.made[4]


def test_what_a_forward_keeps_is_not_there_for_the_next_trace() -> None:
    module, given = _Remembers(), {"given": torch.empty(4, 4, device="meta")}
    first, second = trace(module, given), trace(module, given)
    assert [op.target for op in first.ops] == [op.target for op in second.ops]
    assert {"constant", "aten.expand"} <= {op.target for op in first.ops}
    assert (module.made, hasattr(module, "mask")) == ({}, False)


class _Masks(nn.Module):
    """Makes a constant for the longest text, of terabytes, and uses a corner of it."""

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        steps = torch.zeros(1 << 20, 1 << 20) + torch.arange(1 << 20)
        return given + steps[None].expand(8, -1, -1)[0, :4, :4].triu(1)


def test_a_large_constant_is_not_computed() -> None:
    graph = trace(_Masks(), {"given": torch.empty(4, 4, device="meta")})
    assert [op.target for op in graph.ops][-2:] == ["aten.triu", "aten.add"]
    made = {number for op in graph.ops for number in op.outputs}
    assert set(graph.ops[-1].inputs) <= {*made, graph.inputs[0][1]}


def test_hooks_that_a_forward_installs_are_taken_away_with_their_flag() -> None:
    """Transformers puts hooks on a tower's layers the first time its hidden states are asked for."""
    model = build(
        load("llava", overrides={"vision_config.num_hidden_layers": "3", "text_config.num_hidden_layers": "2"})
    )
    assert [op.target for op in trace(model).ops] == [op.target for op in trace(model).ops]
    assert any(op.module.startswith("model.vision_tower") for op in trace(model).ops)


class _Elsewhere(nn.Module):
    """Names a GPU by itself."""

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return given.to("cuda:0") + torch.ones(4, device="cuda") + given.cuda()


def test_a_device_written_into_the_code_is_the_meta_device() -> None:
    graph = trace(_Elsewhere(), {"given": torch.empty(4, device="meta")})
    assert [op.target for op in graph.ops] == ["aten.ones", "aten.add", "aten.add"]


class _Sorted(nn.Module):
    """Sorts tokens by expert, counts them, and gives each expert its share."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(6, 6, bias=False) for _ in range(4))
        self.choose = nn.Linear(6, 4, bias=False)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        chosen = self.choose(given).topk(2)[1]
        counts = chosen.new_zeros((len(chosen), 4)).scatter_(1, chosen, 1).sum(dim=0).cpu().numpy()
        order = chosen.view(-1).argsort()
        tokens, start, made = given[order // 2], 0, []
        for part, count in zip(self.parts, counts, strict=True):
            if count:
                made.append(part(tokens[start : start + count]))
            start += count
        back = torch.empty_like(tokens)
        back[order] = torch.cat(made)
        return back.view(-1, 2, 6).sum(1)


class _Measured(nn.Module):
    """Distances to points that the forward makes itself, by a function that torch composes of others."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cdist(x, torch.zeros(1, 3, 4))


def test_a_constant_of_the_code_meets_an_input_in_a_composed_function() -> None:
    graph = Tracing(_Measured()).run({"x": torch.empty(1, 5, 4, device="meta")})
    assert graph.values[graph.ops[-1].outputs[0]].shape == (1, 5, 3)


def test_every_expert_gets_an_equal_share_of_sorted_tokens() -> None:
    with torch.device("meta"):
        model = _Sorted()
    graph = trace(model, {"given": torch.empty(9, 6, device="meta")})
    calls = [call for call in graph.calls if call.module.startswith("parts")]
    assert [graph.values[call.outputs[0]].shape for call in calls] == [(4, 6), (4, 6), (4, 6), (6, 6)]


class _Precise(nn.Module):
    """Keeps its own precision on whatever device it is."""

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device_type=given.device.type, enabled=False):
            return given * 2


def test_autocast_names_the_device_of_its_input() -> None:
    assert [op.target for op in trace(_Precise(), {"given": torch.empty(4, device="meta")}).ops] == ["aten.mul"]
    with pytest.raises(RuntimeError):
        torch.autocast("meta", enabled=False)
