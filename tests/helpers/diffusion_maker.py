"""A diffusion model small enough to run in tests."""

from rahf.config import PixelDiffusionConfig
from tests.helpers.model_maker import SMALLEST

TINY = PixelDiffusionConfig(
    image_size=16,
    t5=SMALLEST.t5,
    block_out_channels=(8, 16),
    num_attention_heads=2,
    norm_num_groups=4,
    num_train_timesteps=50,
)
