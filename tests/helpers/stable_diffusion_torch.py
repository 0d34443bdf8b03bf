"""Tiny configs of PyTorch's Stable Diffusion networks, of every published kind."""

TINY_UNET = dict(
    block_out_channels=(16, 16, 32),
    layers_per_block=1,
    norm_num_groups=8,
    mid_block_type="UNetMidBlock2DCrossAttn",
)
_SD = dict(
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    cross_attention_dim=16,
)
UNETS = {
    "1.x": _SD | dict(attention_head_dim=4),
    "2.x": _SD | dict(attention_head_dim=(2, 4, 8), use_linear_projection=True),
    "xl": dict(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=(2, 4, 8),
        transformer_layers_per_block=(1, 2, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=56,
    ),
}
TINY_VAE = dict(
    block_out_channels=(8, 16),
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=4,
)
