"""The bytes of a quantised checkpoint are counted as its files hold them; where nothing is known of them, that is said."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from shardproof.launch.cli import run
from shardproof.planner.loading.load import LoadedModel, load
from shardproof.planner.tracing.programs import on_meta
from shardproof.planner.weights.stored import stored_weights

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "vocab_size": 96,
}
FP8: dict[str, object] = {"quant_method": "fp8", "weight_block_size": [32, 32], "modules_to_not_convert": ["lm_head"]}
Captured = pytest.CaptureFixture[str]


def quantised(method: dict[str, object]) -> LoadedModel:
    loaded = load("llama", overrides=SIZES)
    loaded.config.quantization_config = method
    return loaded


def saved_in_fp8(folder: Path) -> int:
    """A checkpoint in FP8 by blocks, in two files; the bytes of its tensors."""
    held: dict[str, torch.Tensor] = {}
    model = quantised(FP8)
    for name, value in on_meta(model).state_dict().items():
        if "_proj.weight" in name:
            held[name] = torch.zeros(value.shape).to(torch.float8_e4m3fn)
            held[f"{name}_scale_inv"] = torch.ones([size // 32 for size in value.shape])
        else:
            held[name] = torch.zeros(value.shape, dtype=torch.bfloat16)
    names = sorted(held)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: held[name] for name in part}, folder / f"model-{number}.safetensors")
    (folder / "config.json").write_text(
        json.dumps(model.config.to_dict() | {"architectures": ["LlamaForCausalLM"], "quantization_config": FP8})
    )
    return sum(value.numel() * value.element_size() for value in held.values())


def test_blocks_in_fp8_count_as_the_files_hold_them(tmp_path: Path, capsys: Captured) -> None:
    held = saved_in_fp8(tmp_path)
    assert run(["layout", str(tmp_path), "--devices", "1", "--memory", "1GiB", "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["weights_known"] is True
    assert told["layouts"][0]["bytes"]["parameters"] == held


def test_files_and_config_say_the_same_of_fp8(tmp_path: Path) -> None:
    saved_in_fp8(tmp_path)
    model = on_meta(quantised(FP8))
    assert dict(stored_weights(model, tmp_path).widths) == dict(stored_weights(model, None).widths)


def test_packed_words_count_as_the_files_hold_them(tmp_path: Path) -> None:
    """AWQ: eight values of 4 bits in a word, and a scale and a zero point for each group."""
    path, rows, columns = "model.layers.0.mlp.up_proj", 128, 64
    packed = {
        f"{path}.qweight": torch.zeros(columns, rows // 8, dtype=torch.int32),
        f"{path}.qzeros": torch.zeros(columns // 32, rows // 8, dtype=torch.int32),
        f"{path}.scales": torch.zeros(columns // 32, rows, dtype=torch.float16),
    }
    save_file(packed, tmp_path / "model.safetensors")
    model = on_meta(quantised({"quant_method": "awq", "bits": 4, "group_size": 32}))
    stored = stored_weights(model, tmp_path)
    assert dict(stored.widths) == {path: (4096 + 128 + 512) / (rows * columns)}
    assert stored.unknown == ""


def test_a_method_without_files_is_not_known(capsys: Captured, tmp_path: Path) -> None:
    config = load("llama", overrides=SIZES).config.to_dict() | {
        "quantization_config": {"quant_method": "awq", "bits": 4}
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert run(["layout", str(tmp_path / "config.json"), "--devices", "1", "--memory", "1GiB"]) == 0
    assert "weights: counted as before they were quantised (awq)" in capsys.readouterr().out


def test_packed_weights_of_another_name_are_not_counted_as_plain_ones(tmp_path: Path) -> None:
    words = torch.zeros(64, 16, dtype=torch.int32)
    names = ("model.layers.0.mlp.up_proj.qweight", "layers.0.feed.w1.qweight")
    save_file({name: words.clone() for name in names}, tmp_path / "model.safetensors")
    stored = stored_weights(on_meta(quantised({"quant_method": "awq", "bits": 4})), tmp_path)
    assert (dict(stored.widths), stored.unknown) == ({}, "awq")
