"""A tiny diffusion model of pixels."""

import dataclasses

from rahf.config import DiffusionConfig
from tests.helpers.model_maker import SMALLEST

TINY = dataclasses.replace(
    SMALLEST,
    kind="diffusion",
    image_size=16,
    diffusion=DiffusionConfig(widths=(8, 16), heads=2, groups=4, times=50),
)
