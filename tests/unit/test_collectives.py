"""Collectives read off a rank's program: of layers called again, of what no gradient reaches, and of what data chooses."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from shardproof.planner.inputs.example import example_inputs
from shardproof.planner.ir.graph import Graph
from shardproof.planner.ir.plan import Plan, TpEntry
from shardproof.planner.propagation.assign import assign
from shardproof.planner.propagation.collectives import Kind, chosen_by_data, collectives
from shardproof.planner.tracing.rank_program import trace_local
from shardproof.planner.tracing.trace import trace


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, hidden: Tensor) -> Tensor:
        made: Tensor = hidden + self.down(self.up(hidden).tanh())
        return made


class _Turns(PreTrainedModel):
    """Two layers, in turn, `turns` times; only the last turn is trained."""

    config_class = PreTrainedConfig

    def __init__(self, turns: int) -> None:
        super().__init__(PreTrainedConfig())
        self.turns = turns
        self.table = nn.Embedding(50, 8)
        self.layers = nn.ModuleList([_Layer(), _Layer()])

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden: Tensor = self.table(input_ids)
        for turn in range(self.turns):
            with torch.set_grad_enabled(True) if turn == self.turns - 1 else torch.no_grad():
                for layer in self.layers:
                    hidden = layer(hidden)
        return hidden


PLAN = Plan(tp=(TpEntry("layers.*.up", "colwise"), TpEntry("layers.*.down", "rowwise")))


def _local(model: PreTrainedModel) -> Graph:
    nn.Module.to(model, "meta")
    assigned = assign(trace(model), PLAN.styles(""), base_prefix="")
    return trace_local(model, assigned, 2, example_inputs(model))


def test_a_layer_that_is_called_again_issues_again_and_no_more() -> None:
    found = collectives(_local(_Turns(3)))
    forward = [one.module for one in found if not one.backward]
    assert forward == [f"layers.{layer}.down" for _ in range(3) for layer in range(2)]
    assert {one.kind for one in found} == {Kind.ALL_REDUCE}


def test_without_a_gradient_none_is_summed() -> None:
    backward = [one.module for one in collectives(_local(_Turns(3))) if one.backward]
    assert backward == ["layers.1.up"]  # what the first layer of the last turn is given was made without a gradient


class _Direct(_Turns):
    """Layers whose `forward` is called by itself."""

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden: Tensor = self.table(input_ids)
        for layer in self.layers:
            hidden = layer.forward(hidden)
        return hidden


def test_a_forward_that_is_called_by_itself_issues_too() -> None:
    found = {(one.module, one.backward) for one in collectives(_local(_Direct(1)))}
    assert found == {(f"layers.{layer}.{part}", part == "up") for layer in range(2) for part in ("up", "down")}


class _Chosen(PreTrainedModel):
    """One layer of the tokens that a mask chooses, put back among the others."""

    config_class = PreTrainedConfig

    def __init__(self) -> None:
        super().__init__(PreTrainedConfig())
        self.table, self.layers = nn.Embedding(50, 8), nn.ModuleList([_Layer(), _Layer()])

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden: Tensor = self.table(input_ids)
        mask = input_ids > 3
        some = self.layers[0](hidden[mask])
        made: Tensor = self.layers[1](hidden.index_put((mask,), some))
        return made


def test_what_data_chooses_is_known_by_its_rows() -> None:
    local = _local(_Chosen())
    assert chosen_by_data(local).isdisjoint(number for _, number in local.outputs)
    rows = {(one.module, one.row) for one in collectives(local)}
    assert rows == {("layers.0.up", 8), ("layers.0.down", 8), ("layers.1.up", None), ("layers.1.down", None)}
