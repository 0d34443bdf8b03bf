"""Diffusion models small enough to run in tests: Stable Diffusion over pixels, and the family of earlier versions."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from rahf.config import (
    ClipTextConfig,
    Config,
    DataConfig,
    PatchesConfig,
    PixelDiffusionConfig,
    SchedulerConfig,
    StableDiffusionConfig,
    UNetConfig,
)
from rahf.diffusion.networks.pixel_unet import TextToImage
from rahf.diffusion.networks.stable_diffusion import StableDiffusion
from rahf.nn import functional
from rahf.training.model_folder import write_model
from tests.helpers.model_maker import SMALLEST

#: Of earlier versions.
TINY = PixelDiffusionConfig(
    image_size=16,
    t5=SMALLEST.t5,
    block_out_channels=(8, 16),
    num_attention_heads=2,
    norm_num_groups=4,
    num_train_timesteps=50,
)

#: 16 x 16 pixels in cells of 4 x 4.
OF_PIXELS = StableDiffusionConfig(
    image_size=16,
    unet=UNetConfig(
        in_channels=48,
        out_channels=48,
        block_out_channels=(16,),
        cross_attention=(True,),
        layers_per_block=1,
        transformer_layers_per_block=(1,),
        num_attention_heads=(2,),
        cross_attention_dim=16,
        norm_num_groups=4,
    ),
    vae=None,
    patches=PatchesConfig(size=4),
    text_encoder=ClipTextConfig(
        vocab_size=560, positions=40, width=16, depth=1, heads=2, mlp_width=16, eos_token_id=559
    ),
    pad_token_ids=(559,),
    scheduler=SchedulerConfig(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        timestep_spacing="trailing",
        steps_offset=0,
        set_alpha_to_one=True,
        clip_sample=True,
    ),
)


def varied(params, seed: int = 0, scale: float = 0.3):
    """Parameters whose kernels of zeros are random instead, so that every input reaches the output."""
    rng, flat = np.random.default_rng(seed), functional.flatten(params)
    for path, value in flat.items():
        if path.endswith("kernel") and not np.asarray(value).any():
            flat[path] = jnp.asarray(rng.normal(size=value.shape) * scale, jnp.float32)
    return functional.unflatten(flat)


def save(folder: pathlib.Path, model, tokenizer, data: DataConfig, seed: int = 0) -> pathlib.Path:
    """A model directory of random parameters, of either family."""
    network = TextToImage if isinstance(model, PixelDiffusionConfig) else StableDiffusion
    params = jax.device_get(varied(functional.init(lambda: network(model), seed), seed))
    write_model(folder, Config(data=data, model=model), params, tokenizer, {"license": "none"})
    return folder
