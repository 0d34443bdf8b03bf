"""DDIM backwards: from a picture to the noise that DDIM turns into it (Song et al. 2021; Dhariwal & Nichol 2021).

A step of DDIM is ``z' = a z + b f(z, t)`` with the network's output f, whether that is the noise, v or the clean
latents. To go back one needs f at the latents one looks for. Plain inversion takes f at z' instead, which is near. Here
that is the first guess of a fixed-point iteration ``z ← (z' - b f(z, t)) / a`` (Pan et al. 2023; Garibi et al. 2024),
which is exact where it converges, and whose error is measured at every step. What is linear in z is solved, not
iterated: a step with v is a rotation.
`edict` has an inverse that is exact by construction, of another sampler.

    inversion = invert(pipe, picture, "a red cat", num_inference_steps=50)
    pipe("a red cat", latents=inversion.latents, guidance_scale=1.0).images      # the picture
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rahf.config import SchedulerConfig
from rahf.core.errors import ArgumentError, NotFinite
from rahf.diffusion import schedulers
from rahf.diffusion.latents.edict import Coefficients, Denoiser
from rahf.diffusion.pipeline import Pipeline
from rahf.diffusion.sample import denoisers
from rahf.nn import functional


class Inversion(NamedTuple):
    """The way from a picture back to noise.

    Attributes:
      trajectory: float32 [N+1,B,h,w,c]: latents before each of N steps, first the noisiest; last the picture's own.
      error: float32 [N,B], largest absolute difference between what a step makes of its latents and the latents that
        follow; NaN if nothing was iterated: then it is not measured.
    """

    trajectory: Float[Array, "n b h w c"]
    error: Float[Array, "n b"]

    @property
    def latents(self) -> Float[Array, "b h w c"]:
        """The noise: the ``latents`` of a pipeline's call."""
        return self.trajectory[0]


def coefficients(config: SchedulerConfig, num_inference_steps: int, start: int = 0) -> Coefficients:
    """The steps of DDIM in terms of what the network predicts (Salimans & Ho 2022, appendix D).

    Args:
      config: of the model.
      num_inference_steps: N.
      start: number of the first step that is taken.

    Returns:
      float64 [N - start]; `swap` has no meaning here.
    """
    timesteps, before, after = schedulers.ddim_alphas(config, num_inference_steps)
    alpha, sigma, alpha_after, sigma_after = np.sqrt([before, 1 - before, after, 1 - after])
    if config.prediction_type == "epsilon":
        a, b = alpha_after / alpha, sigma_after - alpha_after * sigma / alpha
    elif config.prediction_type == "v_prediction":
        a, b = alpha * alpha_after + sigma * sigma_after, alpha * sigma_after - alpha_after * sigma
    else:
        a, b = sigma_after / sigma, alpha_after - sigma_after * alpha / sigma
    columns = timesteps.astype(np.int32), a, b, np.zeros(len(a), bool)
    return Coefficients(*(column[start:] for column in columns))


def sample(denoiser: Denoiser, coefficients: Coefficients, arguments: Any, z: Float[Array, "b ..."]) -> Array:
    """Plain DDIM from the first of the steps on; the gradient keeps the latents of every step and computes all else
    again. Arguments as of `edict.denoise`, with one z instead of a pair."""

    @jax.checkpoint
    def step(z, row):
        timestep, a, b = row
        return a * z + b * denoiser(arguments, z, jnp.broadcast_to(timestep, z.shape[:1])), None

    return jax.lax.scan(step, z, _rows(coefficients, z.dtype))[0]


def undo(
    denoiser: Denoiser,
    coefficients: Coefficients,
    arguments: Any,
    z: Float[Array, "b ..."],
    iterations: int = 8,
    tolerance: float = 1e-5,
) -> Inversion:
    """The inverse of `sample`. Not to be differentiated.

    Args:
      denoiser: (arguments, z, timesteps int32 [B]) → the network's output.
      coefficients: of the steps, for that output.
      arguments: handed to the denoiser.
      z: float32 [B,...], what the last step shall lead to.
      iterations: most corrections of a step's first guess; each calls the denoiser once. 0: plain inversion, whose
        errors are not measured.
      tolerance: a step is not corrected further once its error is below it, for all of the batch.
    """

    def back(after, row):
        timestep, a, b = row
        times, axes = jnp.broadcast_to(timestep, after.shape[:1]), tuple(range(1, after.ndim))
        before = lambda z: (after - b * denoiser(arguments, z, times).astype(after.dtype)) / a  # noqa: E731
        if not iterations:
            guess = before(after)
            return guess, (guess, jnp.full(len(after), jnp.nan, after.dtype))

        def unfinished(state):
            number, _, _, error = state
            return (number <= iterations) & ~(error <= tolerance).all()

        def correct(state):
            number, guess, best, error = state
            following = before(guess)
            # A step from the guess misses `after` by a (guess - following).
            missed = jnp.abs(a * (guess - following)).max(axes)
            better = ~(missed >= error)
            best = jnp.where(better.reshape(-1, *[1] * len(axes)), guess, best)
            return number + 1, following, best, jnp.where(better, missed, error)

        infinite = jnp.full(len(after), jnp.inf, after.dtype)
        _, _, best, error = jax.lax.while_loop(unfinished, correct, (0, after, after, infinite))
        return best, (best, error)

    _, (trajectory, error) = jax.lax.scan(back, z, _rows(coefficients, z.dtype), reverse=True)
    return Inversion(jnp.concatenate([trajectory, z[None]]), error)


def invert(
    pipe: Pipeline,
    images: Any,
    prompts: str | Sequence[str] = "",
    *,
    negative_prompt: str | Sequence[str] | None = None,
    num_inference_steps: int = 50,
    start: int = 0,
    guidance_scale: float = 1.0,
    iterations: int = 8,
    tolerance: float = 1e-5,
) -> Inversion:
    """Pictures → the noise that leads to them by DDIM over the pipeline's timesteps.

    `Pipeline` with this noise, the same prompts, steps and guidance scale gives the picture back as its autoencoder
    shows it, if its scheduler is DDIM. High guidance scales may not converge: see `Inversion.error`.

    Args:
      pipe: not of inpainting.
      images: float [B,H,W,3] in [0,1], or uint8; one, [H,W,3], is taken, too.
      prompts, negative_prompt: what the pictures show; one for all, or one per picture.
      num_inference_steps: N of the scheduler.
      start: number of the first step that is inverted; N - 6 leads back over the six least noisy ones only.
      guidance_scale: 1: the prompt alone, in half the time.
      iterations, tolerance: as of `undo`.

    Raises:
      ArgumentError: numbers that make no sense; a pipeline of inpainting; a scheduler whose steps cannot be undone.
      ImageError: pixels outside of [0,1].
      NotFinite: the way back leads to NaN or infinity; names the picture.
    """
    check(pipe, num_inference_steps, start, iterations)
    task = pipe.task(prompts, negative_prompt, image=images)
    conditions = pipe.conditions(task.ids, task.negative_ids, task.image.shape[1:3])
    guided = guidance_scale != 1
    key = ("invert", pipe.scheduler, num_inference_steps, start, guided, iterations, tolerance)
    if key not in pipe.compiled:
        plan = coefficients(pipe.scheduler, num_inference_steps, start)
        denoiser = functools.partial(_output, pipe.graphdef, guided)
        pipe.compiled[key] = jax.jit(
            lambda arguments, z: undo(denoiser, plan, arguments, z, iterations, tolerance)  # noqa: B023
        )
    arguments = (pipe.params, conditions, jnp.float32(guidance_scale))
    inversion = pipe.compiled[key](arguments, pipe.encode(task.image))
    finite = np.asarray(jnp.isfinite(inversion.latents).all((1, 2, 3)))
    if not finite.all():
        raise NotFinite(
            f"picture {int(np.flatnonzero(~finite)[0])}: its latents are not finite (NaN or infinite) on the way back "
            f"over {num_inference_steps - start} steps; take more steps, or a guidance_scale of 1"
        )
    return inversion


def check(pipe: Pipeline, num_inference_steps: int, start: int, iterations: int) -> None:
    """Raises ArgumentError as `invert`."""
    check_numbers(pipe, num_inference_steps, start, iterations)
    scheduler = pipe.scheduler
    if schedulers.clip_range(scheduler) is not None:
        raise ArgumentError(
            "scheduler: clip_sample clamps the clean estimate, which cannot be undone; set clip_sample=False"
        )
    if scheduler.prediction_type == "sample" and schedulers.ddim_alphas(scheduler, num_inference_steps)[2][-1] == 1:
        raise ArgumentError(
            "scheduler: with prediction_type sample, a last step to a clean picture forgets its latents, which cannot "
            "be undone; take DDIM with set_alpha_to_one=False"
        )


def check_numbers(pipe: Pipeline, num_inference_steps: int, start: int, iterations: int) -> None:
    """Raises ArgumentError as `invert`, whatever the scheduler."""
    if pipe.inpaints:
        raise ArgumentError("this is a model of inpainting: give one that draws whole pictures")
    if not 0 <= start < num_inference_steps:
        raise ArgumentError(f"start: expected 0 to {num_inference_steps - 1}, the last step, found {start}")
    if iterations < 0:
        raise ArgumentError(f"iterations: expected at least 0 (plain inversion), found {iterations}")


def undoable(scheduler: SchedulerConfig) -> SchedulerConfig:
    """A scheduler whose steps `check` takes: clean estimates are not clamped, and no last step forgets its latents.

    What is undone by it is a way to noise like the scheduler's own, but not the exact inverse of its sampling.
    """
    remembers = scheduler.set_alpha_to_one and scheduler.prediction_type != "sample"
    return dataclasses.replace(scheduler, clip_sample=False, set_alpha_to_one=remembers)


def _output(graphdef: Any, guided: bool, arguments: Any, z: Array, t: Array) -> Array:
    params, conditions, scale = arguments
    network = functional.merge(graphdef, params)
    return denoisers.classifier_free(network, scale)(z, t, conditions) if guided else network(z, t, conditions[0])


def _rows(plan: Coefficients, dtype: Any) -> tuple[Array, Array, Array]:
    return jnp.asarray(plan.timestep), jnp.asarray(plan.a, dtype), jnp.asarray(plan.b, dtype)
