"""Small checkpoints of a Llama and a gpt-oss, as each method stores them.

What is in packed words is random: one device and ranks read the same ones. A method that packs by code of its own package is
made by that package. One of which nothing can be made here gets the plain weights under its name, and one device says why it
does not load them.
"""

import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

State = dict[str, Tensor]
Fields = dict[str, Any]

SIZES: Fields = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "vocab_size": 256,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
KEPT = ["lm_head", "embed_tokens"]
GROUP = 64


def plain(kind: str) -> PreTrainedModel:
    """A model of this type with random weights, in float32."""
    torch.manual_seed(0)
    more = {"num_local_experts": 4, "num_experts_per_tok": 2} if kind == "gpt_oss" else {}
    config = transformers.AutoConfig.for_model(kind, **SIZES, **more)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for value in model.parameters():
            value.normal_(0, 0.08) if value.ndim > 1 else value.uniform_(0.5, 1.5)
    return model


def write(folder: Path, method: str) -> None:
    """The checkpoint of a method, in a new folder. What the method's package raises passes through."""
    kind = "gpt_oss" if method == "mxfp4" else "llama"
    model = plain(kind)
    if (config := _on_the_fly(method)) is not None:
        model.save_pretrained(folder / "plain")
        made = AutoModelForCausalLM.from_pretrained(
            folder / "plain", quantization_config=config, dtype=torch.float32, device_map="cpu"
        )
        made.save_pretrained(folder)
        return
    fields, pack = _PACKED.get(method, ({"quant_method": method}, None))
    state: State = {}
    for name, value in model.state_dict().items():
        stack = kind == "gpt_oss"  # whose experts are packed, and nothing else
        packs = value.ndim == (3 if stack else 2) and name.removesuffix(".weight").endswith("_proj")
        state |= pack(name, value) if packs and pack is not None else {name: value}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "model.safetensors")
    config_fields = {**model.config.to_dict(), "architectures": [type(model).__name__], "quantization_config": fields}
    (folder / "config.json").write_text(json.dumps(config_fields, default=str))


def _on_the_fly(method: str) -> Any:
    """The config with which a method quantises plain weights while it loads them; None of one that does not, or is not here."""
    match method:
        case "bitsandbytes 8 bit":
            return transformers.BitsAndBytesConfig(load_in_8bit=True)
        case "bitsandbytes nf4":
            return transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
        case "bitsandbytes fp4 nested":
            return transformers.BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_use_double_quant=True
            )
        case "torchao int8" | "torchao float8":
            quantization = import_module("torchao.quantization")
            kind = "Int8WeightOnlyConfig" if method.endswith("int8") else "Float8WeightOnlyConfig"
            return transformers.TorchAoConfig(getattr(quantization, kind)())
        case "hqq":
            return transformers.HqqConfig(nbits=4, group_size=GROUP)
        case "quanto":
            return transformers.QuantoConfig(weights="int8")
        case "sinq":
            return transformers.SinqConfig(nbits=4, group_size=GROUP)
        case _:
            return None


def _words(*shape: int) -> Tensor:
    return torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32)


def _fp8(name: str, weight: Tensor, block: tuple[int, int] | None) -> State:
    if block is None:
        scale = weight.abs().max() / 400
        return {name: (weight / scale).to(torch.float8_e4m3fn), f"{name}_scale_inv": scale}
    rows, columns = weight.shape
    scale = torch.rand(rows // block[0], columns // block[1]) * 0.01 + 0.001
    every = scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return {name: (weight / every).clamp(-400, 400).to(torch.float8_e4m3fn), f"{name}_scale_inv": scale}


def _mxfp8(name: str, weight: Tensor) -> State:
    rows, columns = weight.shape
    scale = torch.randint(117, 121, (rows, columns // 32), dtype=torch.uint8)
    every = torch.exp2(scale.float() - 127).repeat_interleave(32, 1)
    return {name: (weight / every).clamp(-400, 400).to(torch.float8_e4m3fn), f"{name}_scale_inv": scale}


def _gptq(name: str, weight: Tensor) -> State:
    (rows, columns), path = weight.shape, name.removesuffix(".weight")
    return {
        f"{path}.qweight": _words(columns // 8, rows),
        f"{path}.qzeros": _words(columns // GROUP, rows // 8),
        f"{path}.scales": torch.rand(columns // GROUP, rows) * 0.01 + 0.001,
        f"{path}.g_idx": (torch.arange(columns) // GROUP).to(torch.int32),
    }


def _awq(name: str, weight: Tensor) -> State:
    (rows, columns), path = weight.shape, name.removesuffix(".weight")
    return {
        f"{path}.qweight": _words(columns, rows // 8),
        f"{path}.qzeros": _words(columns // GROUP, rows // 8),
        f"{path}.scales": torch.rand(columns // GROUP, rows) * 0.01 + 0.001,
    }


def _int8(name: str, weight: Tensor) -> State:
    scale = weight.abs().amax(1, keepdim=True) / 127
    return {name: (weight / scale).round().to(torch.int8), f"{name}_scale": scale}


def _int4(name: str, weight: Tensor) -> State:
    rows, columns = weight.shape
    return {
        f"{name}_packed": _words(rows, columns // 8),
        f"{name}_scale": torch.rand(rows, columns // GROUP) * 0.01 + 0.001,
        f"{name}_shape": torch.tensor([rows, columns]),
    }


def _bitnet(name: str, weight: Tensor) -> State:
    rows, columns = weight.shape
    codes = torch.randint(0, 3, (4, rows // 4, columns), dtype=torch.uint8)
    packed = codes[0] | codes[1] << 2 | codes[2] << 4 | codes[3] << 6
    return {name: packed, f"{name}_scale": torch.tensor([20.0])}


def _mxfp4(name: str, stack: Tensor) -> State:
    experts, into, out = stack.shape
    return {
        f"{name}_blocks": torch.randint(0, 255, (experts, out, into // 32, 16), dtype=torch.uint8),
        f"{name}_scales": torch.randint(120, 124, (experts, out, into // 32), dtype=torch.uint8),
    }


def _compressed(form: str, weights: Fields) -> Fields:
    group = {"targets": ["Linear"], "weights": {"type": "int", "symmetric": True, "dynamic": False, **weights}}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


_FP8: Fields = {"quant_method": "fp8", "activation_scheme": "dynamic", "modules_to_not_convert": KEPT}
_PACKED: Mapping[str, tuple[Fields, Callable[[str, Tensor], State]]] = {
    "fp8 by blocks": ({**_FP8, "weight_block_size": [32, 32]}, lambda name, value: _fp8(name, value, (32, 32))),
    "fp8 per tensor": ({**_FP8, "weight_block_size": None}, lambda name, value: _fp8(name, value, None)),
    "mxfp8": ({**_FP8, "quant_method": "mxfp8", "weight_block_size": [1, 32]}, _mxfp8),
    "mxfp4": ({"quant_method": "mxfp4", "modules_to_not_convert": ["self_attn", "router", *KEPT]}, _mxfp4),
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True}, _gptq),
    "awq": (
        {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"},
        _awq,
    ),
    "auto-round": (
        {
            "quant_method": "auto-round",
            "bits": 4,
            "group_size": GROUP,
            "sym": True,
            "packing_format": "auto_round:auto_gptq",
        },
        _gptq,
    ),
    "compressed-tensors int8": (
        _compressed("int-quantized", {"num_bits": 8, "strategy": "channel"}),
        _int8,
    ),
    "compressed-tensors int4": (
        _compressed("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": GROUP}),
        _int4,
    ),
    "bitnet": ({"quant_method": "bitnet", "linear_class": "bitlinear", "modules_to_not_convert": KEPT}, _bitnet),
}
