"""Universal guidance (Bansal et al. 2023): any diffusion model, steered by any energy of the clean picture.

    schedule = schedules.ddim(schedules.scaled_linear(), 50)
    options = GuidanceOptions(scale=0.2, recurrences=2)

    @jax.jit
    def generate(unet_params, cond, key, energy, options):
        start = universal_guidance.noise(key, 4, (64, 64, 4))
        denoiser = lambda z, t, cond: unet.apply(unet_params, z, t, cond)
        return universal_guidance.sample(
            denoiser, schedule, start, cond, energy=energy, decode=decode, options=options, key=key
        )

    sampled = generate(unet_params, cond, jax.random.key(0), energy.score(critic, prompts, "overall"), options)

The trajectory is one `lax.scan`, whatever the number of steps and recurrences. Latents, clean estimates,
gradients and energies are float32 even if the denoiser computes in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from rahf.core import renamed
from rahf.core.errors import ArgumentError
from rahf.diffusion import schedules
from rahf.diffusion.sample import displace
from rahf.diffusion.sample.denoisers import Denoiser
from rahf.diffusion.sample.options import GuidanceOptions
from rahf.diffusion.schedules import Schedule
from rahf.nn import energy as energy_lib
from rahf.nn import gradients

#: Clean latents or pictures [B,...] → what the energy takes, usually pixels [B,h,w,3] in [0,1].
Decode = Callable[[Array], Array]
#: Output of `decode` → [B], lower is better: a `rahf.nn.energy.Energy`, or any function. A reward: higher is better.
EnergyFunction = Callable[[Array], Array]


class Trace(NamedTuple):
    """What happened, visit by visit: V = steps, and inside the window as many times as `recurrences`.

    Attributes:
      step: int32 [V], number of the step.
      alphas_cumprod: float32 [V], ``abar`` of the latents before the step.
      guided: bool [V], whether it lies in the window.
      energy: float32 [V,B], of the clean estimate before this visit's guidance; NaN where not guided.
      gradient_norm: float32 [V,B], of the energy's gradient before clipping; 0 without forward guidance.
      displacement: float32 [V,B], norm of the displacement that backward guidance added to the clean estimate.
      guarded: bool [V,B], energy or gradient was not finite: the visit left this sample unguided.
    """

    step: Int[Array, " v"]
    alphas_cumprod: Float[Array, " v"]
    guided: Bool[Array, " v"]
    energy: Float[Array, "v b"]
    gradient_norm: Float[Array, "v b"]
    displacement: Float[Array, "v b"]
    guarded: Bool[Array, "v b"]

    @property
    def signal(self) -> Float[Array, " v"]:
        """Deprecated name of `alphas_cumprod`."""
        renamed.warn("Trace.signal", "Trace.alphas_cumprod")
        return self.alphas_cumprod

    @property
    def guarded_steps(self) -> Int[Array, " b"]:
        """At how many visits each sample stayed unguided because something was not finite; int32 [B]."""
        return self.guarded.sum(-2, dtype=jnp.int32)


class GuidedSamples(NamedTuple):
    """Result of `sample`: `sample` float32 [B,...] clean latents or pictures, `energy` float32 [B] of them
    (None without an energy), and the trace."""

    sample: Float[Array, "b ..."]
    energy: Float[Array, " b"] | None
    trace: Trace


def noise(key: Key[Array, "..."], batch: int, shape: tuple[int, ...]) -> Float[Array, "b ..."]:
    """Standard normal noise to start from, float32 [B,*shape].

    Args:
      key: one for all, from which each sample gets its own, so that sample i does not depend on the size of
        the batch; or [B], one per sample.
    """
    return jax.vmap(lambda one: jax.random.normal(one, shape))(_per_sample(key, batch))


def sample(
    denoiser: Denoiser,
    schedule: Schedule,
    start: Float[Array, "b ..."],
    cond: Any = None,
    *,
    energy: EnergyFunction | None = None,
    reward: EnergyFunction | None = None,
    decode: Decode | None = None,
    options: GuidanceOptions = GuidanceOptions(),
    key: Key[Array, "..."] | None = None,
) -> GuidedSamples:
    """Draws one sample from each row of noise. Pure; for `jit`, `vmap` (over keys, scales, energies), and,
    without backward guidance, `grad` through the whole trajectory.

    At a step from abar to abar', inside the window:

    1. ``x0 = (z - sqrt(1 - abar) eps(z,t,cond)) / sqrt(abar)``, ``E = energy(decode(x0))``
    2. forward: ``eps ← eps + scale · sqrt(1 - abar) · g``, g: dE/dz as `options` normalise it
    3. backward: ``d = argmin_d energy(decode(x0 + d))`` from 0 by Adam, x0 that of the new eps;
       ``eps ← eps - sqrt(abar / (1 - abar)) d``, whose clean estimate is exactly x0 + d
    4. the schedule's step; if the step is to be repeated, ``z ← sqrt(abar/abar') z' + sqrt(1 - abar/abar')
       n``, back to 1

    Args:
      denoiser: (z [B,...], t int32 [B], cond) → predicted noise. It gets z in the dtype of `start`.
      schedule: of `rahf.diffusion.schedules`.
      start: pure noise, e.g. of `noise`.
      cond: handed to the denoiser as it is.
      energy: to be lowered; None: plain sampling.
      reward: instead of an energy, to be raised: the energy is ``1 - reward`` (`rahf.nn.energy.reward`).
      decode: clean latents → input of the energy; None: the latents themselves. For pixel-space models see
        `unit_pixels`.
      options: of guidance.
      key: of all noise that is drawn; one, or [B], as in `noise`. Needed if the schedule draws noise or steps
        recur. It may be the key of `start`, whose draws are others.

    Returns:
      Samples, their energy, and the trace. A sample whose energy or gradient is not finite is not guided at
      that visit, which the trace counts; the other samples of the batch are not affected.

    Raises:
      ValueError: a key is needed and there is none; an energy that does not give one number per sample; an energy
        and a reward.
    """
    start, energy = jnp.asarray(start), steering(energy, reward)
    plan = _plan(schedule, options, energy is not None)
    batch = start.shape[0]
    if key is None and plan.draws:
        raise ArgumentError("key: this schedule or these recurrences draw noise; give jax.random.key(seed)")
    keys = None if key is None else jax.vmap(lambda one: jax.random.fold_in(one, 1))(_per_sample(key, batch))
    visit = _Visit(denoiser, energy, decode, options, start.dtype, cond, plan)

    def body(z: Array, row: _Row) -> tuple[Array, tuple[Array, ...]]:
        eps, measured = visit.noise(z, row)
        return visit.step(z, eps, row, keys), measured

    body = jax.checkpoint(body) if options.remat else body
    final, measured = jax.lax.scan(body, start.astype(jnp.float32), jax.tree.map(jnp.asarray, plan.rows))
    trace = Trace(*(jnp.asarray(x) for x in (plan.step, plan.rows.abar, plan.rows.guided)), *measured)
    return GuidedSamples(final, None if energy is None else visit.energy(final), trace)


def steering(energy: EnergyFunction | None, reward: EnergyFunction | None) -> EnergyFunction | None:
    """The energy, or that of the reward. Raises ValueError for both."""
    if energy is not None and reward is not None:
        raise ArgumentError("give an energy (to be lowered) or a reward (to be raised), not both")
    return energy if reward is None else energy_lib.reward(reward)


def unit_pixels(x0: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """`decode` of models of pixels in [-1,1]: maps them to [0,1] and clips."""
    return jnp.clip(x0 * 0.5 + 0.5, 0.0, 1.0)


class _Row(NamedTuple):
    """One visit of a step, as the scan sees it."""

    number: Any  # of the visit, for keys
    timestep: Any
    abar: Any
    abar_prev: Any
    direction: Any
    std_dev: Any
    guided: Any
    again: Any  # noise is put back afterwards, and the step repeated


class _Plan(NamedTuple):
    step: np.ndarray
    rows: _Row  # of arrays [V]

    @property
    def draws(self) -> bool:
        return bool((self.rows.std_dev > 0).any() or self.rows.again.any())


def _plan(schedule: Schedule, options: GuidanceOptions, steered: bool) -> _Plan:
    """The visits in order; recurrences are visits of their own, so that one scan holds them all."""
    schedule = Schedule(*map(np.asarray, schedule))
    low, high = options.window
    inside = steered & (schedule.alphas_cumprod >= low) & (schedule.alphas_cumprod <= high)
    visits = np.where(inside, options.recurrences, 1)
    step = np.repeat(np.arange(len(visits), dtype=np.int32), visits)
    last = np.append(step[1:] != step[:-1], True)
    return _Plan(step, _Row(np.arange(len(step), dtype=np.int32), *(x[step] for x in (*schedule, inside)), ~last))


class _Visit:
    """One visit of one step: the guided noise prediction, and the step with it."""

    def __init__(self, denoiser, energy, decode, options: GuidanceOptions, dtype, cond, plan: _Plan):
        self.options, self.dtype, self.plan = options, dtype, plan
        checkpointed = jax.checkpoint if options.remat else (lambda function: function)
        self._denoise = checkpointed(lambda z, times: denoiser(z, times, cond))
        # `jax.checkpoint` hashes its function, and an energy that holds tracers cannot be hashed: hence the lambdas.
        self._decode = checkpointed(lambda x0: x0 if decode is None else decode(x0))
        self._energy = None if energy is None else checkpointed(lambda pixels: energy(pixels))

    def eps(self, z: Array, timestep: Array) -> Array:
        timesteps = jnp.full(z.shape[0], timestep, jnp.int32)
        return self._denoise(z.astype(self.dtype), timesteps).astype(jnp.float32)

    def energy(self, x0: Array) -> Array:
        values = jnp.asarray(self._energy(self._decode(x0).astype(jnp.float32)))
        if values.shape != x0.shape[:1]:
            raise ArgumentError(f"energy: expected one number per sample, shape {x0.shape[:1]}, found {values.shape}")
        return values.astype(jnp.float32)

    def noise(self, z: Array, row: _Row) -> tuple[Array, tuple[Array, ...]]:
        """Predicted noise with guidance, and its row of the trace."""
        guided, options = self.plan.rows.guided, self.options
        if not guided.any():
            return self._unguided(z, row)
        steers = options.forward or options.backward_steps > 0
        visit = self._guided if steers else self._measured
        return visit(z, row) if guided.all() else jax.lax.cond(row.guided, visit, self._unguided, z, row)

    def _unguided(self, z: Array, row: _Row):
        zeros = jnp.zeros(z.shape[0])
        return self.eps(z, row.timestep), (zeros + jnp.nan, zeros, zeros, zeros.astype(bool))

    def _measured(self, z: Array, row: _Row):
        """Scale 0: the energy is measured, nothing is moved."""
        eps, (_, *zeros) = self._unguided(z, row)
        return eps, (self.energy(schedules.pred_original_sample(z, eps, row.abar)), *zeros)

    def _guided(self, z: Array, row: _Row):
        eps, values, norm, guarded = self._forward(z, row)
        displacement = jnp.zeros_like(norm)
        if self.options.backward_steps:
            x0 = schedules.pred_original_sample(z, eps, row.abar)
            moved, failed = displace.descend(self.energy, x0, self.options)
            shifted = eps - jnp.sqrt(row.abar / (1 - row.abar)) * moved
            eps, guarded, displacement = shifted, guarded | failed, _norm(moved)
        return eps, (values, norm, displacement, guarded)

    def _forward(self, z: Array, row: _Row) -> tuple[Array, Array, Array, Array]:
        """Noise after forward guidance; energy, gradient norm, and whether one of them is not finite, each [B]."""
        options = self.options

        def total(z: Array):
            eps = self.eps(z, row.timestep)
            through = eps if options.through_denoiser else jax.lax.stop_gradient(eps)
            values = self.energy(schedules.pred_original_sample(z, through, row.abar))
            return values.sum(), (values, eps)  # samples are independent: the sum's gradient is each one's own

        if not options.forward:
            _, (values, eps) = total(z)
            return eps, values, jnp.zeros_like(values), ~jnp.isfinite(values)
        with gradients.of_guidance():
            (_, (values, eps)), gradient = jax.value_and_grad(total, has_aux=True)(z)
        norm = _norm(gradient)
        shift = jnp.sqrt(1 - row.abar) * displace.rows(self._strength(norm, eps), z) * gradient
        finite = jnp.isfinite(values) & jnp.isfinite(norm) & jnp.isfinite(shift).all(tuple(range(1, z.ndim)))
        return jnp.where(displace.rows(finite, z), eps + shift, eps), values, norm, ~finite

    def _strength(self, norm: Array, eps: Array) -> Array:
        """Factor of the gradient, [B]; 0 where the gradient is 0."""
        options = self.options
        length = jnp.minimum(norm, options.max_norm)
        if options.normalise == "unit":
            length = jnp.ones_like(norm)
        elif options.normalise == "eps":
            length = _norm(jax.lax.stop_gradient(eps))
        return options.scale * jnp.where(norm > 0, length / jnp.where(norm > 0, norm, 1.0), 0.0)

    def step(self, z: Array, eps: Array, row: _Row, keys: Array | None) -> Array:
        """From z to the latents after the step; back to z's noise level if the step is to be repeated."""
        x0 = schedules.pred_original_sample(z, eps, row.abar)
        if self.options.clean_range is not None:
            x0 = jnp.clip(x0, *self.options.clean_range)
            eps = (z - jnp.sqrt(row.abar) * x0) / jnp.sqrt(1 - row.abar)
        after = jnp.sqrt(row.abar_prev) * x0 + row.direction * eps
        if (self.plan.rows.std_dev > 0).any():
            after = after + row.std_dev * _draw(keys, 2 * row.number, z)
        if self.plan.rows.again.any():
            back = schedules.add_noise(after, _draw(keys, 2 * row.number + 1, z), row.abar / row.abar_prev)
            after = jnp.where(row.again, back, after)
        return after


def _draw(keys: Array, number: Array, like: Array) -> Array:
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, number), like.shape[1:]))(keys)


def _per_sample(key: Array, batch: int) -> Array:
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ArgumentError("key: expected jax.random.key(seed), or an array of such keys, one per sample")
    if key.ndim == 0:
        return jax.vmap(lambda number: jax.random.fold_in(key, number))(jnp.arange(batch))
    if key.shape != (batch,):
        raise ArgumentError(f"key: expected one key, or {batch}, one per sample; found shape {key.shape}")
    return key


def _norm(x: Array) -> Array:
    """Euclidean norm of each sample, [B]; its own gradient is finite at 0."""
    squares = jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim)))
    zero = squares == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, squares)))


__all__ = ["GuidanceOptions", "GuidedSamples", "Trace", "noise", "sample", "steering", "unit_pixels"]
