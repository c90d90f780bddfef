# mypy: disable-error-code="no-any-return"
# What another package makes is not typed here.
"""Models whose constructors take other objects than sizes, as the packages' own pages make them."""

from importlib import import_module
from typing import Any

from torch import nn


def _named(reference: str) -> Any:
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)


def _text(kind: str, **layers: Any) -> nn.Module:
    made = _named(f"x_transformers:{kind}")(dim=64, depth=3, heads=4, attn_dim_head=16, **layers)
    return _named("x_transformers:TransformerWrapper")(num_tokens=100, max_seq_len=64, attn_layers=made)


def xt_decoder() -> nn.Module:
    return _text("Decoder")


def xt_encoder() -> nn.Module:
    return _text("Encoder")


def xt_rotary_gated() -> nn.Module:
    return _text("Decoder", rotary_pos_emb=True, ff_glu=True, use_rmsnorm=True)


def xt_alibi() -> nn.Module:
    return _text("Decoder", alibi_pos_bias=True, alibi_num_heads=2)


def xt_grouped_queries() -> nn.Module:
    return _text("Decoder", attn_kv_heads=2, rotary_pos_emb=True, ff_swish=True, ff_glu=True)


def xt_relative_bias() -> nn.Module:
    return _text("Decoder", rel_pos_bias=True)


def xt_query_key_norm() -> nn.Module:
    return _text("Decoder", attn_qk_norm=True)


def xt_gated_values() -> nn.Module:
    return _text("Decoder", attn_gate_values=True)


def xt_sandwich_norm() -> nn.Module:
    return _text("Decoder", sandwich_norm=True, ff_relu_squared=True)


def xt_images() -> nn.Module:
    made = _named("x_transformers:Encoder")(dim=64, depth=3, heads=4, attn_dim_head=16)
    kind = _named("x_transformers:ViTransformerWrapper")
    return kind(image_size=32, patch_size=8, num_classes=10, attn_layers=made)


def _litgpt(name: str, **sizes: int) -> nn.Module:
    small = {"n_layer": 3, "n_embd": 64, "n_head": 4, "head_size": 16, "intermediate_size": 128} | sizes
    config = _named("litgpt:Config").from_name(name, padded_vocab_size=128, block_size=64, **small)
    return _named("litgpt:GPT")(config)


def litgpt_pythia() -> nn.Module:
    return _litgpt("pythia-14m")


def litgpt_llama() -> nn.Module:
    return _litgpt("Llama-3.2-1B", n_query_groups=2)


def litgpt_mixtral() -> nn.Module:
    return _litgpt("Mixtral-8x7B-v0.1", n_query_groups=2)


def litgpt_gemma() -> nn.Module:
    return _litgpt("Gemma-3-1b-it", n_query_groups=2)


def litgpt_falcon() -> nn.Module:
    return _litgpt("falcon-7b")


def _timm(name: str) -> nn.Module:
    return _named("timm:create_model")(name, pretrained=False)


def timm_vit() -> nn.Module:
    return _timm("vit_tiny_patch16_224")


def timm_deit() -> nn.Module:
    return _timm("deit_tiny_patch16_224")


def timm_swin() -> nn.Module:
    return _timm("swin_tiny_patch4_window7_224")


def timm_eva02() -> nn.Module:
    return _timm("eva02_tiny_patch14_224")


def timm_mixer() -> nn.Module:
    return _timm("mixer_s32_224")


def timm_xcit() -> nn.Module:
    return _timm("xcit_nano_12_p16_224")


def timm_cait() -> nn.Module:
    return _timm("cait_xxs24_224")


def timm_hiera() -> nn.Module:
    return _timm("hiera_tiny_224")


def timm_convnext() -> nn.Module:
    return _timm("convnext_femto")


def timm_mvit() -> nn.Module:
    return _timm("mvitv2_tiny")


def timm_davit() -> nn.Module:
    return _timm("davit_tiny")


def openclip_small() -> nn.Module:
    vision = {"layers": 3, "width": 64, "head_width": 16, "patch_size": 8, "image_size": 32}
    text = {"context_length": 20, "vocab_size": 100, "width": 64, "heads": 4, "layers": 3}
    return _named("open_clip.model:CLIP")(embed_dim=64, vision_cfg=vision, text_cfg=text)


def mambapy_stack() -> nn.Module:
    return _named("mambapy.mamba:Mamba")(_named("mambapy.mamba:MambaConfig")(d_model=64, n_layers=3))


def xlstm_stack() -> nn.Module:
    layer = _named("xlstm:mLSTMBlockConfig")(mlstm=_named("xlstm:mLSTMLayerConfig")(num_heads=4))
    config = _named("xlstm:xLSTMBlockStackConfig")(mlstm_block=layer, context_length=32, num_blocks=3, embedding_dim=64)
    return _named("xlstm:xLSTMBlockStack")(config)


def _torchscale(kind: str, **sizes: Any) -> nn.Module:
    config = _named(f"torchscale.architecture.config:{kind}Config")(vocab_size=100, **sizes)
    owner = "retnet:RetNetDecoder" if kind == "RetNet" else "encoder:Encoder"
    return _named(f"torchscale.architecture.{owner}")(config, embed_tokens=nn.Embedding(100, 64))


def torchscale_retnet() -> nn.Module:
    sizes = {"embed_dim": 64, "value_embed_dim": 128, "retention_heads": 4, "ffn_embed_dim": 128, "layers": 3}
    return _torchscale("RetNet", no_output_layer=False, **{f"decoder_{name}": size for name, size in sizes.items()})


def torchscale_encoder() -> nn.Module:
    sizes = {"embed_dim": 64, "attention_heads": 4, "ffn_embed_dim": 128, "layers": 3}
    return _torchscale("Encoder", **{f"encoder_{name}": size for name, size in sizes.items()})


NAMES = tuple(name for name, one in list(globals().items()) if callable(one) and name.islower() and name[0] != "_")[1:]
"""The functions of this file that take nothing."""
