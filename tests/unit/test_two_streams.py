"""A model of two streams as diffusers writes them: its inputs, the keys of modules in lists, the plan of its class."""

import importlib.util
from dataclasses import replace
from functools import lru_cache
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shardproof import load, prove, suggest
from shardproof.launch.authoring.plan_forms import diffusers_form
from shardproof.planner.inputs.accepted import plain_form
from shardproof.planner.inputs.example import TRACED, inputs_of
from shardproof.planner.ir.findings import Severity, Verdict
from shardproof.planner.ir.placement import Shard, local_shape, packed, parse
from shardproof.planner.ir.plan import Plan, TpEntry, key_for, keyed
from shardproof.planner.ir.styles import style_of
from shardproof.planner.loading.build import build
from shardproof.planner.loading.carried_plan import carried_plan
from shardproof.planner.loading.load import LoadedModel
from shardproof.planner.loading.modules.any_module import nested
from shardproof.planner.twins.twin import twin
from shardproof.verify.clients.diffusers.dialect import DIFFUSERS
from shardproof.verify.clients.diffusers.own_proof import prove_own_plan
from shardproof.verify.clients.prove import prove_for


class PackedRowwiseParallel:
    def __init__(self, blocks: list[int] | None = None) -> None:
        self.blocks = blocks


class Block(nn.Module):
    def __init__(self, width: int, head: int) -> None:
        super().__init__()
        self.head, hidden = head, 4 * width
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.mod = nn.Linear(width, 2 * width)
        self.up, self.out = nn.Linear(width, hidden), nn.Linear(width + hidden, width)
        self.ff = nn.ModuleList([nn.Linear(width, hidden), nn.Dropout(0.0), nn.Linear(hidden, width)])

    def forward(self, x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        scale, shift = self.mod(F.silu(at)).chunk(2, dim=-1)
        y = x * (1 + scale[:, None]) + shift[:, None]
        q, k, v = (p(y).unflatten(-1, (-1, self.head)).transpose(1, 2) for p in (self.to_q, self.to_k, self.to_v))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2, 3)
        x = x + self.out(torch.cat([mixed, F.gelu(self.up(y))], dim=-1))
        for layer in self.ff:
            y = layer(y)
        made: torch.Tensor = x + y
        return made


class Wren(nn.Module):
    """Latents of images beside the text of another model, at a time: a small copy of how such models are called."""

    _tp_plan: ClassVar[dict[str, object]] = {
        "blocks.*.to_q": "colwise",
        "blocks.*.to_k": "colwise",
        "blocks.*.to_v": "colwise",
        "blocks.*.up": "colwise",
        "blocks.*.out": PackedRowwiseParallel([1, 4]),
        "blocks.*.ff.0": "colwise",
        "blocks.*.ff.2": "rowwise",
    }

    def __init__(self, in_channels=4, text_dim=40, num_heads=8, head_dim=16, num_layers=6) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        width = num_heads * head_dim
        self.patch, self.text = nn.Conv2d(in_channels, width, 2, 2), nn.Linear(text_dim, width)
        self.time, self.size = nn.Linear(1, width), nn.Linear(1, width)
        self.blocks = nn.ModuleList(Block(width, head_dim) for _ in range(num_layers))

    @lru_cache(maxsize=4)  # noqa: B019  # as models keep their tables of positions
    def _places(self, count: int, device: torch.device) -> torch.Tensor:
        return torch.arange(count, device=device).float()[:, None]

    def forward(
        self,
        latents: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        timestep: torch.Tensor | None = None,
        added: dict[str, torch.Tensor] | None = None,
        height: int | None = None,
    ) -> torch.Tensor:
        if added is None:
            raise ValueError("`added` cannot be None")
        image = self.patch(latents).flatten(2).transpose(1, 2)
        image = image + self.size(added["resolution"][:, :1])[:, None] * (height // 2)  # type: ignore[operator]
        both = torch.cat([self.text(encoder_hidden_states), image + self._places(image.shape[1], image.device)], dim=1)
        at = self.time(timestep.float()[:, None])  # type: ignore[union-attr]
        for block in self.blocks:
            both = block(both, at)
        return both


@pytest.fixture(scope="module")
def wren() -> LoadedModel:
    return load("tests.unit.test_two_streams:Wren")


def test_inputs_are_found_from_what_the_forward_raises(wren: LoadedModel) -> None:
    form = plain_form(build(wren), TRACED)
    assert form is not None
    given = inputs_of(build(wren), form)
    assert given["latents"].shape[:2] == (3, 4)
    assert given["encoder_hidden_states"].shape == (3, 17, 40)
    assert given["timestep"].shape == (3,)
    assert given["added.resolution"].shape[0] == 3
    assert given["height"] == 3


def test_parts_of_lists_and_dicts_are_put_together() -> None:
    assert nested({"a": 1, "b.0": 2, "b.1": 3, "c.x": 4, "d": {}, "d.y": 5}) == {
        "a": 1,
        "b": [2, 3],
        "c": {"x": 4},
        "d": {"y": 5},
    }


def test_a_key_names_one_module_of_a_list_of_unlike_ones(wren: LoadedModel) -> None:
    styles = suggest(wren).plan.styles("")
    assert styles["blocks.*.ff.0"] == "colwise"
    assert styles["blocks.*.ff.2"] == "rowwise"
    assert keyed("blocks.3.ff.2.weight", {"blocks.3.ff"}) == "blocks.*.ff.2.weight"
    assert keyed("blocks.3.ff.2", frozenset()) == "blocks.*.ff.*"
    assert key_for("blocks.3.ff.2", ["blocks.*.ff.0", "blocks.*.ff.2"]) == "blocks.*.ff.2"
    assert key_for("blocks.3.ff.1", ["blocks.*.ff.0", "blocks.*.ff.2"]) is None


def test_the_plan_of_the_class_is_proved_as_diffusers_reads_it(wren: LoadedModel) -> None:
    plan = carried_plan(wren, build(wren))
    assert TpEntry("blocks.*.out", "packed_rowwise[1, 4]") in plan.tp
    proof = prove_for(DIFFUSERS, wren, plan, tp=2)
    assert proof.verdict is Verdict.PROVED, proof.findings
    assert (
        prove(wren, plan, tp=2).verdict is Verdict.PROVED
    )  # no parameter sees a part of the heads alone: right in training too


@pytest.mark.parametrize("style", ["rowwise", "packed_rowwise[1, 1, 3]", "packed_rowwise[4, 1]"])
def test_blocks_that_are_cut_elsewhere_are_refuted(wren: LoadedModel, style: str) -> None:
    plan = carried_plan(wren, build(wren))
    wrong = Plan(tp=tuple(replace(e, style=style) if e.pattern == "blocks.*.out" else e for e in plan.tp))
    proof = prove_for(DIFFUSERS, wren, wrong, tp=2)
    assert proof.verdict is Verdict.REFUTED
    assert any("blocks.*.out" in str(finding.place) for finding in proof.findings)


def test_a_style_that_diffusers_lacks_and_a_key_without_a_module_are_refused(wren: LoadedModel) -> None:
    gathered = Plan(tp=(TpEntry("text", "colwise_gather_output"),))
    assert prove_for(DIFFUSERS, wren, gathered, tp=2).findings[0].code == "BE411"
    lost = Plan(tp=(TpEntry("blocks.*.ff.1", "rowwise"), TpEntry("blocks.*.nowhere", "colwise")))
    codes = {finding.code for finding in prove(wren, lost, tp=2).findings if finding.severity is Severity.ERROR}
    assert "PL102" in codes


def test_what_the_proof_of_an_own_plan_did_not_look_at_is_said(wren: LoadedModel) -> None:
    plan = carried_plan(wren, build(wren))
    result = prove_own_plan(wren, plan, tp=2)
    assert result.verdict is Verdict.PROVED
    assert result.scope is not None
    assert (result.scope.modes, len(result.scope.assumptions)) == (("evaluation",), 2)
    assert prove_own_plan(wren, plan, tp=2, strict=True).verdict is Verdict.NOT_PROVED
    lost = replace(plan, tp=(*plan.tp, TpEntry("blocks.*.nope", "colwise")))
    assert [f.code for f in prove_own_plan(wren, lost, tp=2).findings if f.severity is Severity.ERROR] == ["PL102"]


def test_a_twin_keeps_what_belongs_together(wren: LoadedModel) -> None:
    small = twin(wren, tp=2)
    config = small.config
    assert (config.num_layers, config.num_heads, config.head_dim, config.text_dim) == (2, 4, 16, 40)


def test_unequal_blocks_are_a_placement_with_a_written_form() -> None:
    assert packed(1, (64, 256)) == Shard(1, 2, (1, 4))
    assert packed(0, (5, 5)) == Shard(0, 2)
    assert str(packed(1, (64, 256))) == "S(1/1+4)"
    assert parse("S(1/1+4)") == packed(1, (1, 4))
    assert local_shape((8, 320), packed(1, (1, 4)), 2) == (8, 160)
    with pytest.raises(ValueError, match="does not divide"):
        local_shape((8, 15), packed(1, (1, 4)), 2)


def test_the_form_of_diffusers() -> None:
    form = diffusers_form("A plan.", {"a.*.b": "colwise", "a.*.c": "packed_rowwise[1, 4]"}, {"a.*.b": "heads"})
    assert '"a.*.b": "colwise",  # heads' in form.text
    assert '"a.*.c": PackedRowwiseParallel([1, 4]),' in form.text
    found = style_of("packed_colwise[1, 1, 3]")
    assert found is not None
    assert found.placement("bias", 1) == packed(0, (1, 1, 3))


@pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="diffusers is not installed")
def test_the_plan_of_flux() -> None:
    loaded = load("diffusers:FluxTransformer2DModel", overrides={"num_layers": 1, "num_single_layers": 1})
    plan = carried_plan(loaded, build(loaded))
    assert TpEntry("single_transformer_blocks.*.proj_out", "packed_rowwise[1, 4]") in plan.tp
    assert prove_for(DIFFUSERS, loaded, plan, tp=2).verdict is Verdict.PROVED
