"""A trained motion model, ready for use: a photograph and a seed in, a spectral volume out."""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from data_pipelines.video import read
from data_pipelines.video import volume as volume_lib
from data_pipelines.video.volume import SpectralVolume
from rahf.config import Config
from rahf.config.motion import MotionConfig
from rahf.core.errors import ArgumentError, CheckpointError
from rahf.core.tree import Params
from rahf.diffusion import schedules
from rahf.diffusion.sample import universal_guidance
from rahf.diffusion.sample.options import GuidanceOptions
from rahf.motion import loops
from rahf.motion import spectrum as spectrum_lib
from rahf.motion import task as task_lib
from rahf.motion.network import MotionModel
from rahf.nn import functional
from rahf.training import saved_model

#: Weight of classifier-free guidance (Li et al. 2024).
GUIDANCE_SCALE = 1.75


class MotionGenerator:
    """A motion model with its parameters.

    Attributes:
      config, params: of the run.
      description: frames, rate and scales of the frequencies.
    """

    def __init__(self, config: Config, params: Params, description: read.Description):
        self.config, self.params, self.description = config, params, description
        self.graphdef, _ = functional.abstract(lambda: MotionModel(config.model))
        self._sampler = functools.cache(self._compiled)

    def volume(
        self,
        picture: UInt8[np.ndarray, "H W 3"],
        seed: int = 0,
        num_inference_steps: int = 50,
        guidance_scale: float = GUIDANCE_SCALE,
        loop_scale: float = 0.0,
        recurrences: int = 1,
    ) -> SpectralVolume:
        """Draws a motion for a photograph.

        Args:
          picture: of any size; it is resized to the model's grid, and the motion belongs to that grid.
          seed: another seed, another motion.
          num_inference_steps: of DDIM.
          guidance_scale: w of ``(1 + w) eps(photograph) - w eps(nothing)``.
          loop_scale: u of self-guidance towards a loop (equation 5), as a share of the noise; 0: none, 0.1 to 1 is
            usual.
          recurrences: visits of each step under self-guidance.

        Raises:
          ArgumentError: numbers out of range.
        """
        if not (np.isfinite(guidance_scale) and guidance_scale >= 0):
            raise ArgumentError(f"guidance_scale: expected 0 or more, found {guidance_scale}")
        options = GuidanceOptions(scale=float(loop_scale), recurrences=recurrences if loop_scale else 1)
        config = self.config.model
        small = Image.fromarray(picture).resize((config.width, config.height), Image.Resampling.BOX)
        sample = self._sampler(num_inference_steps, bool(loop_scale), options.recurrences)
        channels = sample(self.params, np.asarray(small)[None], seed, float(guidance_scale), float(loop_scale))
        spectrum = volume_lib.from_channels(np.asarray(channels)[0])
        return SpectralVolume(spectrum, self.description.frames, self.description.fps)

    def _compiled(self, steps: int, guided: bool, recurrences: int) -> Callable[..., Any]:
        config, description = self.config.model, self.description
        scales = description.scales[: config.terms]
        abar = task_lib.alphas_cumprod(config)
        schedule = schedules.ddim(abar, steps)
        factor = 2 ** (len(config.vae.block_out_channels) - 1)
        shape = (config.terms, config.height // factor, config.width // factor, config.vae.latent_channels)
        joint = config.stage == "frequency"

        @jax.jit
        def sample(params, images, seed, guidance_scale, loop_scale):
            model, key = functional.merge(self.graphdef, params), jax.random.key(seed)
            with_photograph = model.condition(images)
            without = jnp.zeros_like(with_photograph)

            def denoiser(z, t, cond):
                doubled = jnp.concatenate([z, z])
                photographs = jnp.concatenate([with_photograph, without])
                noise = model.denoise(doubled, jnp.concatenate([t, t]), photographs, joint)
                given, free = jnp.split(noise, 2)
                return (1 + guidance_scale) * given - guidance_scale * free

            def decode(latents):
                b, k = latents.shape[:2]
                normalised = model.decode(latents.reshape(b * k, *latents.shape[2:]))
                normalised = normalised.reshape(b, k, *normalised.shape[1:])
                return spectrum_lib.denormalise(normalised, scales, config.normalisation)

            options = GuidanceOptions(scale=loop_scale if guided else 0.0, recurrences=recurrences)
            start = universal_guidance.noise(key, images.shape[0], shape)
            energy = loops.loop_energy(description.frames) if guided else None
            drawn = universal_guidance.sample(
                denoiser, schedule, start, energy=energy, decode=decode, options=options, key=key
            )
            return decode(drawn.sample)

        return sample


def run_of(path: str | os.PathLike) -> pathlib.Path:
    """The run directory of what `load` takes. Raises CheckpointError: no model there."""
    return saved_model.find(path).run


def load(path: str | os.PathLike) -> MotionGenerator:
    """Loads a run directory or checkpoint of the motion family.

    Raises:
      CheckpointError: no model there, one of another family, or a run of the autoencoder alone, which cannot draw.
    """
    saved = saved_model.find(path, expected="a run directory of the family motion")
    if not isinstance(saved.config.model, MotionConfig):
        raise CheckpointError(f"{saved.run}: a {saved.config.model.family}, no motion model; load it with rahf.load")
    if saved.config.model.stage == "autoencoder":
        raise CheckpointError(
            f"{saved.run}: trained as an autoencoder of motion, which draws nothing; train the next stage from it "
            "(configs/motion/demo_diffusion.py)"
        )
    params = saved.params(lambda: MotionModel(saved.config.model))
    return MotionGenerator(saved.config, params, read.description(saved.run))
