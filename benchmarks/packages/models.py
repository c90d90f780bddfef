"""Models of published packages, by reference and small sizes; the packages are installed beside, where wanted."""

_VIT = "image_size=32 patch_size=8 num_classes=10 dim=64 depth=3 heads=4 mlp_dim=128 dim_head=16"
_LM = "num_tokens=100 dim=64 depth=3 heads=4 dim_head=16"

CLASSES: tuple[str, ...] = (
    f"vit_pytorch:ViT {_VIT}",
    f"vit_pytorch:SimpleViT {_VIT}",
    f"vit_pytorch.deepvit:DeepViT {_VIT}",
    f"vit_pytorch.cait:CaiT {_VIT} cls_depth=2",
    f"vit_pytorch.xcit:XCiT {_VIT} cls_depth=2",
    "vit_pytorch.crossformer:CrossFormer num_classes=10 dim=[16,32,64,128] depth=[1,1,1,1] local_window_size=7",
    "vit_pytorch.max_vit:MaxViT num_classes=10 dim_conv_stem=32 dim=32 dim_head=16 depth=[1,1] window_size=7",
    "vit_pytorch.mobile_vit:MobileViT image_size=[64,64] dims=[32,48,64] channels=[16,16,24,24,32,32,48,48,64,64,128] "
    "num_classes=10",
    "torchvision.models:VisionTransformer image_size=32 patch_size=8 num_layers=3 num_heads=4 hidden_dim=64 mlp_dim=128",
    "torchvision.models:SwinTransformer patch_size=[4,4] embed_dim=32 depths=[2,2] num_heads=[2,4] window_size=[4,4]",
    "esm.model.esm2:ESM2 num_layers=3 embed_dim=64 attention_heads=4",
    "segment_anything.modeling:ImageEncoderViT img_size=64 patch_size=8 embed_dim=64 depth=3 num_heads=4 out_chans=32 "
    "use_rel_pos=true window_size=4 global_attn_indexes=[2]",
    "perceiver_pytorch:Perceiver input_channels=3 input_axis=2 num_freq_bands=4 max_freq=10 depth=2 num_latents=16 "
    "latent_dim=64 latent_heads=4 cross_dim_head=16 latent_dim_head=16 num_classes=10",
    f"performer_pytorch:PerformerLM {_LM} max_seq_len=64",
    "linear_attention_transformer:LinearAttentionTransformerLM num_tokens=100 dim=64 heads=4 depth=3 max_seq_len=64",
    "linformer:LinformerLM num_tokens=100 dim=64 seq_len=64 depth=3 k=16 heads=4",
    f"local_attention:LocalTransformer {_LM} max_seq_len=64 causal=true local_attn_window_size=16",
    f"palm_rlhf_pytorch:PaLM {_LM}",
    f"recurrent_memory_transformer_pytorch:RecurrentMemoryTransformer {_LM} num_memory_tokens=4 causal=true seq_len=64",
    "mega_pytorch:Mega num_tokens=100 dim=64 depth=3 attn_dim_qk=32 attn_dim_value=64",
    "gateloop_transformer:Transformer num_tokens=100 dim=64 depth=3 use_gate_looped_attn=true",
    "st_moe_pytorch:MoE dim=64 num_experts=4 gating_top_n=2",
    "soft_moe_pytorch:SoftMoE dim=64 seq_len=32 num_experts=4",
    "mixture_of_experts:MoE dim=64 num_experts=4 hidden_dim=128",
    "tab_transformer_pytorch:FTTransformer categories=[4,5,3] num_continuous=4 dim=64 dim_out=1 depth=3 heads=4 dim_head=16",
    "iTransformer:iTransformer num_variates=7 lookback_len=24 dim=64 depth=3 heads=4 dim_head=16 pred_length=12",
    "conformer:Conformer dim=64 depth=3 dim_head=16 heads=4",
    "g_mlp_pytorch:gMLP num_tokens=100 dim=64 depth=3 seq_len=32 causal=true",
    "routing_transformer:RoutingTransformerLM num_tokens=100 dim=64 heads=4 depth=3 max_seq_len=64 causal=true window_size=16",
    "reformer_pytorch:ReformerLM num_tokens=100 dim=64 depth=3 max_seq_len=64 heads=4 bucket_size=8 causal=true",
    "hourglass_transformer_pytorch:HourglassTransformerLM num_tokens=100 dim=64 max_seq_len=64 heads=4 dim_head=16 "
    "shorten_factor=2 depth=[1,1,1]",
    f"block_recurrent_transformer_pytorch:BlockRecurrentTransformer {_LM} max_seq_len=64 block_width=32 num_state_vectors=16 "
    "recurrent_layers=[2]",
    "MEGABYTE_pytorch:MEGABYTE num_tokens=100 dim=[64,32] depth=[2,2] max_seq_len=[8,4]",
    "charformer_pytorch:GBST num_tokens=100 dim=64 max_block_size=4 downsample_factor=2 score_consensus_attn=true",
    "x_clip:CLIP dim_text=64 dim_image=64 dim_latent=32 num_text_tokens=100 text_enc_depth=2 text_seq_len=16 text_heads=4 "
    "visual_enc_depth=2 visual_image_size=32 visual_patch_size=8 visual_heads=4",
)
"""Classes whose constructors take sizes."""
BUILT = "benchmarks.packages.built"
"""Where the functions are that make models whose constructors take other objects."""


def references() -> tuple[str, ...]:
    """All models, each with its sizes."""
    from benchmarks.packages import built

    return (*CLASSES, *(f"{BUILT}:{name}" for name in built.NAMES))
