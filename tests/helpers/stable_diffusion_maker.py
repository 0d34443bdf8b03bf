"""Published sizes of Stable Diffusion, and tiny pipelines of every kind, without PyTorch."""

from rahf.config import UNetConfig

SD21_UNET = UNetConfig(cross_attention_dim=1024, num_attention_heads=(5, 10, 20, 20), use_linear_projection=True)
SDXL_UNET = UNetConfig(
    block_out_channels=(320, 640, 1280),
    cross_attention=(False, True, True),
    transformer_layers_per_block=(1, 2, 10),
    num_attention_heads=(5, 10, 20),
    cross_attention_dim=2048,
    use_linear_projection=True,
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
)
