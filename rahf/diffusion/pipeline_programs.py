"""What a pipeline compiles: one step of a scheduler, a whole guided sampling, and the ways into latents and out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rahf.config import SchedulerConfig
from rahf.diffusion import controlnet as controlnet_lib
from rahf.diffusion import schedulers
from rahf.diffusion.generated import GeneratedImages
from rahf.diffusion.networks.stable_diffusion import StableDiffusion
from rahf.diffusion.sample import denoisers, universal_guidance
from rahf.nn import functional
from rahf.nn.execution import jit_convolving


def program(graphdef: nnx.GraphDef, width: int, kind: str, *static: Any) -> Callable[..., Any]:
    """A jitted function of a `StableDiffusion`.

    Args:
      width: channels of the widest convolutions.
      kind: "encode", "decode": (params, pictures or latents) → the other; "prompts": (params, ids, negative ids) →
        conditions for pictures of the size `static[0]`; "step", "guided": see `_step` and `_guided`.
      static: what the function depends on besides its arguments.
    """
    merge = lambda params: functional.merge(graphdef, params)  # noqa: E731
    if kind == "encode":
        return jit_convolving(lambda params, pictures: merge(params).encode(pictures), width)
    if kind == "decode":
        return jit_convolving(lambda params, latents: merge(params).decode(latents), width)
    if kind == "prompts":
        return jax.jit(lambda params, ids, negative: merge(params).conditions(ids, negative, static[0]))
    if kind == "step":
        return jit_convolving(_step(graphdef, *static), width)
    return jax.jit(_guided(graphdef, *static))


class Known(NamedTuple):
    """Of a picture that is started from or repainted, each None where there is none.

    Attributes:
      latents: [B,h,w,c].
      mask: [B,h,w,1], 1: repaint.
      masked: [B,h,w,1+c], mask and latents of the masked picture, for networks that read them.
      control: of a ControlNet.
    """

    latents: Any
    mask: Any
    masked: Any
    control: controlnet_lib.Control | None = None

    def starts(self, start: int) -> bool:
        """Whether sampling from step `start` on begins with the picture: without a mask even at the first step."""
        return self.latents is not None and (start > 0 or self.mask is None)


def _guided(
    graphdef: nnx.GraphDef, scheduler: SchedulerConfig, steps: int, eta: float, start: int, classifier_free: bool
) -> Callable[..., Any]:
    """A whole sampling that is guided by an energy: → (`GeneratedImages`, latents)."""
    schedule = schedulers.guided(scheduler, steps, eta)
    schedule = type(schedule)(*(column[start:] for column in schedule))
    alphas_cumprod = np.maximum(schedulers.alphas_cumprod(scheduler), 2.0**-24)

    def program(params, conditions, noise, seeds, guidance_scale, known, energy, options):
        model = functional.merge(graphdef, params)
        network = _controlled(model, known.control)
        if known.masked is not None:
            network, conditions = _with_extra(network), tuple((c, known.masked) for c in conditions)
        denoiser = denoisers.epsilon(network, alphas_cumprod, scheduler.prediction_type)
        if classifier_free:
            denoiser = denoisers.classifier_free(denoiser, guidance_scale)
        else:
            conditions = conditions[0]
        if known.mask is not None and known.masked is None:
            denoiser = denoisers.inpainting(denoiser, alphas_cumprod, known.latents, known.mask > 0)
        abar = schedule.alphas_cumprod[0]
        begin = np.sqrt(abar) * known.latents + np.sqrt(1 - abar) * noise if known.starts(start) else noise
        sampled = universal_guidance.sample(
            denoiser,
            schedule,
            begin,
            conditions,
            energy=energy,
            decode=model.decode,
            options=options,
            key=jax.vmap(jax.random.key)(seeds),
        )
        images = model.decode(sampled.sample)
        return GeneratedImages(images, sampled.energy, sampled.trace), sampled.sample

    return program


def _controlled(model: StableDiffusion, control: controlnet_lib.Control | None) -> Callable[..., jax.Array]:
    """The network, with a ControlNet if there is one."""
    if control is None:
        return model
    return lambda z, t, cond: model(z, t, cond, control.residuals(z, t, cond))


def _with_extra(model: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A network of inpainting, whose conditions come with what it reads besides the latents."""
    return lambda z, t, pair: model(jnp.concatenate([z, pair[1]], -1), t, pair[0])


def _step(
    graphdef: Any, prediction_type: str, clip: float | None, classifier_free: bool, stochastic: bool
) -> Callable[..., Any]:
    """One step of a scheduler: (latents, history) → (latents, history, finite)."""

    def step(params, conditions, scale, row, level, latents, history, start_noise, seeds, number, known):
        model = functional.merge(graphdef, params)
        scaled, twice = row.input_scale * latents, lambda *parts: jnp.concatenate(parts)
        extra = [] if known.masked is None else [known.masked]
        if classifier_free:
            scaled, cond = twice(scaled, scaled), jax.tree.map(twice, *conditions)
            extra = [twice(x, x) for x in extra]
        else:
            cond = conditions[0]
        times = jnp.broadcast_to(row.timestep, len(scaled))
        output = _controlled(model, known.control)(jnp.concatenate([scaled, *extra], -1), times, cond)
        if classifier_free:
            prompt, negative = jnp.split(output, 2)
            output = negative + scale * (prompt - negative)
        x0, eps = schedulers.convert(row, prediction_type, clip, latents, output)
        fresh = noise(seeds, latents.shape[1:], 1 + number) if stochastic else None
        latents, history = schedulers.advance(row, latents, x0, eps, history, fresh)
        if known.mask is not None and known.masked is None:
            latents = jnp.where(known.mask > 0, latents, schedulers.add_noise(level, known.latents, start_noise))
        return latents, history, jnp.isfinite(latents).all((1, 2, 3))

    return step


_ONE, _ZERO = np.float32(1), np.float32(0)
_CLEAN = schedulers.Steps(_ZERO, _ONE, _ONE, *[_ZERO] * 7, np.zeros(0, np.float32), _ONE)


def noise_level(following: schedulers.Steps | None) -> schedulers.Steps:
    """The row whose noise the latents have after a step; after the last, none."""
    return _CLEAN if following is None else following


def noise(seeds: Any, shape: tuple[int, ...], number: Any = 0) -> jax.Array:
    """Standard normal noise of each seed, float32 [B,*shape]; `number` 0 is what sampling starts from."""
    draw = lambda seed: jax.random.normal(jax.random.fold_in(jax.random.key(seed), number), shape)  # noqa: E731
    return jax.vmap(draw)(jnp.asarray(seeds))
