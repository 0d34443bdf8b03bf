"""Full-size networks of Stable Diffusion, traced without allocating a parameter."""

import jax
import jax.numpy as jnp
import pytest

from rahf.config import (
    AutoencoderKLConfig,
    AutoencoderTinyConfig,
    ClipTextConfig,
    ConfigError,
    StableDiffusionConfig,
    UNetConfig,
)
from rahf.core.tree import count
from rahf.diffusion.networks.autoencoder import AutoencoderKL, AutoencoderTiny
from rahf.diffusion.networks.stable_diffusion import Conditions, StableDiffusion
from rahf.diffusion.networks.unet import UNet2DConditionModel
from rahf.nn import functional
from rahf.nn.clip_text import TextTower
from tests.helpers.stable_diffusion_maker import SD21_UNET, SDXL_UNET

FLOAT32 = jnp.dtype("float32")


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, FLOAT32)


@pytest.mark.parametrize(
    "config, parameters, side, tokens",
    [
        (UNetConfig(), 859_520_964, 64, 77),  # stable-diffusion-v1-5
        (SD21_UNET, 865_910_724, 96, 77),  # stable-diffusion-2-1
        (SDXL_UNET, 2_567_463_684, 128, 77),  # stable-diffusion-xl-base-1.0
        (UNetConfig(in_channels=9), 859_535_364, 64, 77),  # stable-diffusion-inpainting
    ],
)
def test_unet(config, parameters, side, tokens):
    graphdef, params = functional.abstract(lambda: UNet2DConditionModel(config, dtype=FLOAT32))
    assert count(params) == parameters
    sized = bool(config.addition_time_embed_dim)
    conditions = Conditions(
        shape(2, tokens, config.cross_attention_dim), shape(2, 1280) if sized else None, shape(2, 6) if sized else None
    )
    call = lambda params, *inputs: functional.merge(graphdef, params)(*inputs)
    latents = shape(2, side, side, config.in_channels)
    out = jax.eval_shape(call, params, latents, jax.ShapeDtypeStruct((2,), jnp.int32), conditions)
    assert (out.shape, out.dtype) == ((2, side, side, 4), FLOAT32)


@pytest.mark.parametrize(
    "build, parameters, factor",
    [
        (lambda: AutoencoderKL(AutoencoderKLConfig(), dtype=FLOAT32), 83_653_863, 8),
        (lambda: AutoencoderTiny(AutoencoderTinyConfig(), dtype=FLOAT32), 2_445_063, 8),  # taesd: 1.22 M each way
    ],
)
def test_autoencoders(build, parameters, factor):
    graphdef, params = functional.abstract(build)
    assert count(params) == parameters

    def there_and_back(params, pictures):
        network = functional.merge(graphdef, params)
        latents = network.encode(pictures).mean
        return latents, network.decode(latents)

    latents, pictures = jax.eval_shape(there_and_back, params, shape(1, 64, 96, 3))
    assert latents.shape == (1, 64 // factor, 96 // factor, 4) and pictures.shape == (1, 64, 96, 3)


@pytest.mark.parametrize(
    "config, parameters",
    [
        (ClipTextConfig(width=768, depth=12, heads=12, mlp_width=3072), 123_060_480),  # CLIP-L
        (ClipTextConfig(width=1024, depth=23, heads=16, mlp_width=4096, activation="gelu"), 340_387_840),  # OpenCLIP-H
        (ClipTextConfig(width=1280, depth=32, heads=20, mlp_width=5120, activation="gelu"), 693_021_440),  # bigG
    ],
)
def test_text_towers(config, parameters):
    """H without its last layer, as Stable Diffusion 2 has it; bigG without its projection of 1280 x 1280."""
    graphdef, params = functional.abstract(lambda: TextTower(config, dtype=FLOAT32))
    assert count(params) == parameters
    states = jax.eval_shape(
        lambda params, ids: functional.merge(graphdef, params).states(ids), params, jax.ShapeDtypeStruct((2, 77), int)
    )
    assert states.penultimate.shape == (2, 77, config.width) and states.end.shape == (2, config.width)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(unet=UNetConfig(in_channels=5)), "in_channels: expected 4, or 9"),
        (dict(unet=UNetConfig(cross_attention_dim=1024)), "cross_attention_dim: expected 768"),
        (dict(unet=UNetConfig(num_attention_heads=(8, 8))), "num_attention_heads: expected 4 values"),
        (dict(unet=UNetConfig(block_out_channels=(320, 640, 1280, 1290))), "1290 cannot be divided"),
        (dict(vae=None), "expected one of them"),
        (dict(text_encoder_2=ClipTextConfig(width=0)), "expected both"),
        (dict(pad_token_ids=()), "one per text tower"),
    ],
)
def test_parts_that_do_not_fit(fields, message):
    with pytest.raises(ConfigError, match=message):
        functional.abstract(lambda: StableDiffusion(StableDiffusionConfig(**fields)))
