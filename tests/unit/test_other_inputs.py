"""Types with images, patches and numbers read off data: what a trace answers, which calls are found, how small a twin is."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import shardproof.planner.inference.suggest as inferring
from shardproof.planner.inference.groups import infer_groups, size_of
from shardproof.planner.inference.probe import Probe, Prober, prober
from shardproof.planner.inputs.accepted import search
from shardproof.planner.inputs.call_form import call_of
from shardproof.planner.inputs.example import TRACED, example_inputs, inputs_of
from shardproof.planner.inputs.run_modes import RunMode, Script
from shardproof.planner.ir.graph import UNRECORDED
from shardproof.planner.loading.build import build
from shardproof.planner.loading.load import load
from shardproof.planner.tracing.layers.repeats import runs_every_layer
from shardproof.planner.tracing.programs import Subject, on_meta, subject_in, subject_of
from shardproof.planner.tracing.recorded_run import TraceError
from shardproof.planner.tracing.trace import trace, trace_script
from shardproof.planner.twins.depth import depth
from shardproof.planner.twins.small_media import smaller_media
from shardproof.planner.twins.twin import twin


class _Runs(nn.Module):
    """A module whose forward is a function of its linear layer and its inputs."""

    def __init__(self, code: Callable[..., Any]) -> None:
        super().__init__()
        self.code, self.layers = code, nn.ModuleList(nn.Linear(8, 8, device="meta") for _ in range(3))

    def forward(self, **given: Any) -> Any:
        return self.code(self.layers, **given)


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def test_a_list_of_tensors_is_their_stack() -> None:
    model = _Runs(lambda layers, ids: layers[0](torch.tensor([ids.max(), 1, ids.min()])[:, None].expand(3, 8).float()))
    graph = trace(model, {"ids": _meta(3, 5, dtype=torch.long)})
    assert any(op.target == "aten.stack" for op in graph.ops)
    assert not any((value.name or "").startswith(UNRECORDED) for value in graph.values)


def test_a_size_that_is_read_off_data_is_answered() -> None:
    model = _Runs(lambda layers, ids: layers[0](torch.zeros(ids.max(), 8, device=ids.device)))
    graph = trace(model, {"ids": _meta(3, 5, dtype=torch.long)})
    assert any(op.target == "read" for op in graph.ops)
    assert any("numbers are read off data" in note for note in graph.notes)


@pytest.mark.parametrize(("times", "rows"), [(torch.tensor([2, 1, 4]), 7), (_meta(3, dtype=torch.long), 3)])
def test_rows_are_repeated_as_often_as_numbers_say(times: Tensor, rows: int) -> None:
    model = _Runs(lambda layers, x, times: layers[0](torch.repeat_interleave(x, times, dim=0)))
    graph = trace(model, {"x": _meta(3, 8), "times": times})
    assert graph.values[graph.outputs[0][1]].shape == (rows, 8)


def _remembering(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """As Transformers' decorator, which remembers what its function gave."""
    remembered = cache(function)

    def wrapper(*args: Any) -> Tensor:
        return remembered(*args)

    return wrapper


@cache
def _kept_coordinates(count: int, device: torch.device) -> Tensor:
    return torch.arange(count, device=device)[:, None].expand(count, 8).float()


def test_what_a_function_of_the_file_keeps_is_computed_in_every_trace() -> None:
    model = _Runs(lambda layers, x: layers[0](x + _kept_coordinates(3, x.device)))
    first, second = (trace(model, {"x": _meta(3, 8)}) for _ in range(2))
    assert [op.target for op in first.ops] == [op.target for op in second.ops]


class _Positions(nn.Module):
    """A table of positions as DETR's models keep it: a static method remembers it."""

    @staticmethod
    @_remembering
    def table(count: int, device: torch.device) -> Tensor:
        return torch.arange(count, device=device)[:, None].expand(count, 8).float()

    def forward(self, x: Tensor) -> Tensor:
        return self.table(3, x.device)


def test_what_a_static_method_keeps_is_computed_in_every_trace() -> None:
    model = _Runs(lambda layers, x: layers[0](x + layers[3](x)))
    model.layers.append(_Positions())
    first, second = (trace(model, {"x": _meta(3, 8)}) for _ in range(2))
    assert [op.target for op in first.ops] == [op.target for op in second.ops]


def test_layers_that_are_dropped_at_random_are_the_same_in_every_trace() -> None:
    def dropping(layers: nn.ModuleList, x: Tensor) -> Tensor:
        for _ in range(24):
            x = x if torch.rand([]) < 0.5 else layers[0](x)
        return x

    first, second = (trace(_Runs(dropping), {"x": _meta(3, 8)}) for _ in range(2))
    assert [op.target for op in first.ops] == [op.target for op in second.ops]
    assert any("every rank is taken to draw the same ones" in note for note in first.notes)


def test_an_empty_rest_is_no_dim_to_split() -> None:
    def padded(layers: nn.ModuleList, x: Tensor) -> Tensor:
        rest = x[:, 3:] + x.new_empty(8)[None, None]
        y: Tensor = torch.cat([layers[0](x), rest.reshape(3, 0, 2, 4).flatten(2) * x[:, :1]], dim=1)
        return y

    model = _Runs(padded)
    groups = infer_groups(trace(model, {"x": _meta(3, 3, 8)}))
    assert all(size_of(dim) in (0, 1, 2, 3, 4, 8) for dims in groups.dims.values() for dim in dims)


def test_a_mask_finds_as_many_tokens_as_there_are_features() -> None:
    def add(layers: nn.ModuleList, x: Tensor, mask: Tensor) -> Tensor:
        out: Tensor = layers[0](x[mask] + x.new_empty(12, 8))
        return out

    graph = trace(_Runs(add), {"x": _meta(3, 17, 8), "mask": _meta(3, 17, dtype=torch.bool)})
    assert graph.values[graph.outputs[0][1]].shape == (12, 8)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(8, device="meta"), nn.Linear(8, 8, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.up(self.norm(x))
        return out


class _Layered(nn.Module):
    """Layers alike, and behind them what no input can pass unless it is `good`."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Block() for _ in range(3))

    def forward(self, x: Tensor, bad: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x if bad is None else x.view(7, 7)


def test_what_fails_with_every_layer_leaves_the_next_trace_its_repeats() -> None:
    model = _Layered()
    with pytest.raises(TraceError):
        trace_script(model, Script(RunMode.EVALUATION, ({"x": _meta(3, 8), "bad": _meta(1)},)))
    assert not runs_every_layer(model, RunMode.EVALUATION)
    graph, _ = trace_script(model, Script(RunMode.EVALUATION, ({"x": _meta(3, 8)},)))
    assert [op.target for op in graph.ops] == ["layer_norm", "linear", "aten.add", "repeat", "repeat"]


@pytest.mark.parametrize(
    ("name", "given"),
    [
        (
            "siglip2_vision_model",
            {"pixel_values": (3, 16, 768), "spatial_shapes": (3, 2), "pixel_attention_mask": (3, 16)},
        ),
        ("gemma4_vision", {"pixel_values": (3, 16, 768), "pixel_position_ids": (3, 16, 2)}),
        ("minicpmv4_6_vision", {"pixel_values": (1, 3, 16, 768), "target_sizes": (3, 2)}),
        ("kimi_k25_vision", {"pixel_values": (12, 3, 14, 14), "grid_thw": (3, 3)}),  # what a convolution takes
        ("pix2struct_vision_model", {"flattened_patches": (3, 17, 770)}),  # a width that an operator asks for
    ],
)
def test_patches_are_given_as_the_forward_takes_them(name: str, given: dict[str, tuple[int, ...]]) -> None:
    model = build(load(name))
    trace(model)
    assert {name: tuple(value.shape) for name, value in example_inputs(model).items()} == given


def test_a_call_made_of_inputs_gives_them_again_for_another_batch() -> None:
    grid = torch.tensor([[1, 4, 4]] * 3)
    call = call_of({"ids": _meta(3, 17, dtype=torch.long), "grid": grid, "scale": 2}, rows=3, tokens=17)
    made = call.made(2, 5)
    assert made["ids"].shape == (2, 5) and made["scale"] == 2
    assert made["grid"].tolist() == [[1, 4, 4]] * 2


def test_a_view_that_cannot_fold_its_tokens_asks_for_more() -> None:
    model = build(load("timesfm", overrides={"num_hidden_layers": 1}))
    accepted, _ = search(model, lambda given: model(**given), sizes=TRACED, failed=Exception, reached=lambda _: 0)
    assert {inputs_of(model, accepted.form, TRACED)[name].shape for name in ("past_values", "past_values_padding")} == {
        (3, 96)
    }


@pytest.mark.parametrize(
    ("total", "handed_on", "kept"),
    [(24, [6, 12, 18, 24], [2, 3, 4, 5]), (12, ["stage12"], ["stage2"]), (12, [3, 5, 7, 11], [1, 2, 3, 4])],
)
def test_a_backbone_hands_on_layers_that_its_twin_has(total: int, handed_on: list[object], kept: list[object]) -> None:
    fields = {"num_hidden_layers": total, "out_indices": handed_on}
    assert depth(fields, {"num_hidden_layers": "layers"}, least=2)["out_indices"] == kept


def test_a_search_finds_the_rows_of_known_parts() -> None:
    def packed(layers: nn.ModuleList, x: Tensor, mask: Tensor) -> list[Tensor]:
        rows = x.flatten(0, 1)[(mask.flatten() > 0).nonzero().squeeze(-1)]
        return [layers[0](part) for part in rows.split([4, 5, 3])]

    graph = trace(_Runs(packed), {"x": _meta(3, 5, 8), "mask": _meta(3, 5, dtype=torch.long)})
    assert [graph.values[op.outputs[0]].shape[0] for op in graph.ops if op.target == "linear"] == [4, 5, 3]


def test_the_image_of_a_twin_shrinks_with_all_that_counts_its_patches() -> None:
    config = load("sam").config
    small = next(smaller_media(config))
    assert (config.vision_config.image_size, small.vision_config.image_size) == (1024, 64)
    assert small.prompt_encoder_config.image_size == 64
    assert small.prompt_encoder_config.image_embedding_size == 4
    assert small.vision_config.patch_size == config.vision_config.patch_size


def test_an_image_of_a_twin_that_is_not_square_keeps_its_ratio() -> None:
    height, width = next(smaller_media(load("seggpt").config)).image_size
    assert height == 2 * width < 896


def test_audio_of_a_twin_is_short_and_a_small_image_stays() -> None:
    assert next(smaller_media(load("whisper").config)).max_source_positions == 32
    assert next(smaller_media(load("wav2vec2-bert").config)).max_source_positions == 32
    assert list(smaller_media(load("llama").config)) == []
    assert list(smaller_media(load("vit", overrides={"image_size": 64}).config)) == []


def test_a_vision_tower_has_a_twin_with_a_small_image() -> None:
    assert twin(load("sam_vision_model"), tp=2).config.image_size == 64


def test_a_vision_language_model_decodes_without_what_nobody_recorded() -> None:
    few = {"text_config": {"num_hidden_layers": 2}, "vision_config": {"depth": 2}}
    subject = subject_in(build(load("qwen2_vl", overrides=few)), RunMode.DECODING)
    assert subject is not None
    assert not any((value.name or "").startswith(UNRECORDED) for value in subject.graph.values)


def test_a_mode_that_cannot_be_judged_at_all_says_nothing_of_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
    subject = subject_of(on_meta(load(module, inputs=["input: float[b, 32]"])))
    other, real = replace(subject), prober

    def judged(first: Subject, *others: Subject, **given: Any) -> Prober:
        if other in (first, *others) and not (first is subject and not others):
            return lambda *_: Probe(False, "not known")
        return real(first, *others, **given)

    monkeypatch.setattr(inferring, "prober", judged)
    found = inferring._inference(subject, (other,), None)
    assert {pattern: entry.style for pattern, entry in found.entries.items()} == {"0": "colwise", "2": "rowwise"}
