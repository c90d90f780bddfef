"""Sizes, chosen here, of models whose constructors have no defaults that build: any that the constructor accepts will do."""

SIZES: dict[str, str] = {
    "HunyuanDiT2DModel": "patch_size=2 in_channels=4 num_attention_heads=16 attention_head_dim=88 hidden_size=1408",
    "LatteTransformer3DModel": "in_channels=4 out_channels=8 num_layers=28 cross_attention_dim=1152 attention_head_dim=72 "
    "caption_channels=4096 patch_size=2 sample_size=64 activation_fn=gelu-approximate norm_type=ada_norm_single "
    "norm_elementwise_affine=false attention_bias=true num_embeds_ada_norm=1000",
    "LuminaNextDiT2DModel": "num_kv_heads=8",
    "HiDreamImageTransformer2DModel": "patch_size=2 in_channels=16 out_channels=16 num_layers=16 num_single_layers=32 "
    "attention_head_dim=128 num_attention_heads=20 caption_channels=[4096,4096] text_emb_dim=2048 num_routed_experts=4 "
    "num_activated_experts=2 axes_dims_rope=[64,32,32] max_resolution=[128,128] llama_layers=[0,1,2]",
    "EasyAnimateTransformer3DModel": "in_channels=16 out_channels=16 patch_size=2 text_embed_dim=3584 num_layers=48 "
    "mmdit_layers=48 num_attention_heads=48 attention_head_dim=64 add_norm_text_encoder=true",
}
