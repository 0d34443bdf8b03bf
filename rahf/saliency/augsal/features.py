"""What a frozen Stable Diffusion computes inside while it looks at a picture (Luo et al. 2023; Luo et al. 2024).

A picture is brought back to noise by DDIM inversion, over the least noisy steps only. At each of these latents the
U-Net is asked once, and the outputs of the residual blocks of its way up are kept: twelve of Stable Diffusion 1 and 2,
four levels with three each.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rahf.config import UNetConfig
from rahf.core.errors import ArgumentError
from rahf.diffusion.latents import inversion
from rahf.diffusion.latents.edict import Coefficients
from rahf.diffusion.networks.stable_diffusion import StableDiffusion
from rahf.diffusion.networks.unet import Conditions, Observer, time_embedding
from rahf.diffusion.pipeline import Pipeline
from rahf.nn import functional


class Layer(NamedTuple):
    """One residual block of the way up.

    Attributes:
      level: of the U-Net, 0 is the largest; number: within the level.
      channels: of its output.
      stride: cells of the latents in one cell of its output, along a side.
    """

    level: int
    number: int
    channels: int
    stride: int


class Features(NamedTuple):
    """Of a batch of pictures.

    Attributes:
      maps: one per layer, [B,T,h,w,c] in the U-Net's compute dtype.
      temb: [B,T,d] embedding of the timesteps, in the same dtype.
    """

    maps: tuple[Float[Array, "b t h w c"], ...]
    temb: Float[Array, "b t d"]


def layers_of(config: UNetConfig) -> tuple[Layer, ...]:
    """The residual blocks of the way up, in the order in which they are computed: the coarsest first."""
    levels = reversed(range(len(config.block_out_channels)))
    return tuple(
        Layer(level, number, config.block_out_channels[level], 2**level)
        for level in levels
        for number in range(config.layers_per_block + 1)
    )


def steps_of(scheduler: Any, num_inference_steps: int, times: int) -> Coefficients:
    """The `times` least noisy steps of DDIM, first the noisiest; those of `inversion.undoable`, as nothing is sampled.

    Raises:
      ArgumentError: more times than steps, or none.
    """
    if not 1 <= times <= num_inference_steps:
        raise ArgumentError(f"times: expected 1 to {num_inference_steps}, the number of steps, found {times}")
    return inversion.coefficients(inversion.undoable(scheduler), num_inference_steps, num_inference_steps - times)


class _Collector(Observer):
    def __init__(self):
        self.maps: list[Array] = []

    def up(self, level: int, number: int, features: Array) -> None:
        self.maps.append(features)


def collect(
    model: StableDiffusion, trajectory: Float[Array, "t b h w c"], timesteps: Any, conditions: Conditions
) -> Features:
    """The features at given latents; pure, one time after the other.

    Args:
      model: with its parameters.
      trajectory: float32 [T,B,h,w,c], latents at each time.
      timesteps: int32 [T], theirs.
      conditions: of the prompts.
    """
    b = trajectory.shape[1]

    def at(time):
        latents, timestep = time
        collector, times = _Collector(), jnp.broadcast_to(timestep, (b,))
        model(latents, times, conditions, observer=collector)
        return tuple(collector.maps), time_embedding(model.unet, times, conditions)

    maps, temb = jax.lax.map(at, (trajectory, jnp.asarray(timesteps)))
    return Features(tuple(jnp.moveaxis(x, 0, 1) for x in maps), jnp.moveaxis(temb, 0, 1))


def inverted(
    model: StableDiffusion,
    latents: Float[Array, "b h w c"],
    conditions: Conditions,
    plan: Coefficients,
    iterations: int = 0,
) -> inversion.Inversion:
    """The latents before each of the steps of `plan`, by DDIM inversion without classifier-free guidance; pure."""
    return inversion.undo(lambda _, z, t: model(z, t, conditions), plan, None, latents, iterations)


class FeatureExtractor:
    """Pictures → `Features` of a pipeline.

    Attributes:
      layers: what `Features.maps` holds, in this order.
      timesteps: int32 [T], of the latents that are looked at, first the noisiest.
    """

    def __init__(self, pipe: Pipeline, num_inference_steps: int = 50, times: int = 6, iterations: int = 0):
        """Args:
          pipe: of Stable Diffusion; not of inpainting.
          num_inference_steps: of the inversion.
          times: T, how many of its least noisy steps are looked at.
          iterations: corrections of each step; 0: plain inversion.

        Raises:
          ArgumentError: more times than steps, or a pipeline of inpainting.
        """
        plan = steps_of(pipe.scheduler, num_inference_steps, times)
        inversion.check_numbers(pipe, num_inference_steps, num_inference_steps - times, iterations)
        self._pipe, self.layers, self.timesteps = pipe, layers_of(pipe.config.model.unet), plan.timestep
        graphdef = pipe.graphdef

        def run(params, latents, conditions):
            model = functional.merge(graphdef, params)
            way_back = inverted(model, latents, conditions, plan, iterations)
            return collect(model, way_back.trajectory[:-1], plan.timestep, conditions)

        self._run = jax.jit(run)

    def __call__(self, images: Any, prompts: Any = "") -> Features:
        """The features of pictures of one size.

        Args:
          images: float [B,H,W,3] in [0,1], or uint8; one, [H,W,3], is taken, too.
          prompts: what they show: one for all, or one per picture; empty: unconditional.

        Raises:
          ArgumentError: sizes that are no multiple of the latents' cells. ImageError: pixels outside of [0,1].
        """
        task = self._pipe.task(prompts, image=images)
        conditions, _ = self._pipe.conditions(task.ids, task.negative_ids, task.image.shape[1:3])
        return self._run(self._pipe.params, self._pipe.encode(task.image), conditions)
