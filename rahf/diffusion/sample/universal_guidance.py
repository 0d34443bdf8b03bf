"""Universal guidance (Bansal et al. 2023): any diffusion model, steered by any energy of the clean picture.

    schedule = schedules.ddim(schedules.scaled_linear(), 50)
    options = GuidanceOptions(scale=0.2, recurrences=2)

    @jax.jit
    def generate(unet_params, cond, key, energy, options):
        start = universal.noise(key, 4, (64, 64, 4))
        denoiser = lambda z, t, cond: unet.apply(unet_params, z, t, cond)
        how = dict(energy=energy, decode=decode, options=options, key=key)
        return universal.sample(denoiser, schedule, start, cond, **how)

    made = generate(unet_params, cond, jax.random.key(0), energy.score(critic, prompts, "overall"), options)

The trajectory is one `lax.scan`, whatever the number of steps and recurrences. Latents, clean estimates,
gradients and energies are float32 also if the denoiser computes in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from rahf.diffusion import schedules
from rahf.diffusion.sample import displace
from rahf.diffusion.sample.denoisers import Denoiser
from rahf.diffusion.sample.options import GuidanceOptions
from rahf.diffusion.schedules import Schedule

#: Clean latents or pictures [B,...] → what the energy takes, usually pixels [B,h,w,3] in [0,1].
Decode = Callable[[Array], Array]
#: What `decode` gives → [B], lower is better. `rahf.critic.energy.Energy`, or any function.
EnergyFunction = Callable[[Array], Array]


class Trace(NamedTuple):
    """What happened, visit by visit: V = steps, and inside the window as many times as `recurrences`.

    Attributes:
      step: int32 [V], number of the step; `signal` float32 [V], its ``abar``.
      guided: bool [V], whether it lies in the window.
      energy: float32 [V,B], of the clean estimate before this visit's guidance; NaN where not guided.
      gradient_norm: float32 [V,B], of the energy's gradient as it came, before clipping; 0 without forward
        guidance.
      displacement: float32 [V,B], norm of what backward guidance added to the clean estimate.
      guarded: bool [V,B], energy or gradient was not finite: this sample went on without guidance.
    """

    step: Int[Array, " v"]
    signal: Float[Array, " v"]
    guided: Bool[Array, " v"]
    energy: Float[Array, "v b"]
    gradient_norm: Float[Array, "v b"]
    displacement: Float[Array, "v b"]
    guarded: Bool[Array, "v b"]

    @property
    def guarded_steps(self) -> Int[Array, " b"]:
        """How often each sample went on without guidance because something was not finite; int32 [B]."""
        return self.guarded.sum(-2, dtype=jnp.int32)


class Sampled(NamedTuple):
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
    decode: Decode | None = None,
    options: GuidanceOptions = GuidanceOptions(),
    key: Key[Array, "..."] | None = None,
) -> Sampled:
    """Draws one sample from each row of noise. Pure; for `jit`, `vmap` (over keys, scales, energies), and,
    without backward guidance, `grad` through the whole trajectory.

    At a step with signal abar, inside the window:

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
      energy: what to lower; None: plain sampling.
      decode: clean latents → what the energy takes; None: as they are. For pixel-space models see
        `unit_pixels`.
      options: of guidance.
      key: of all noise that is drawn; one, or [B], as in `noise`. Needed if the schedule draws noise or steps
        recur. It may be the key of `start`, whose draws are others.

    Returns:
      Samples, their energy, and the trace. A sample whose energy or gradient is not finite is not guided at
      that visit, which the trace counts; the others of the batch do not notice.

    Raises:
      ValueError: a key is needed and there is none; an energy that does not give one number per sample.
    """
    start = jnp.asarray(start)
    plan = _plan(schedule, options, energy is not None)
    batch = start.shape[0]
    if key is None and plan.draws:
        raise ValueError("key: this schedule or these recurrences draw noise; give jax.random.key(seed)")
    keys = None if key is None else jax.vmap(lambda one: jax.random.fold_in(one, 1))(_per_sample(key, batch))
    visit = _Visit(denoiser, energy, decode, options, start.dtype, cond, plan)

    def body(z: Array, row: _Row) -> tuple[Array, tuple[Array, ...]]:
        eps, measured = visit.noise(z, row)
        return visit.step(z, eps, row, keys), measured

    body = jax.checkpoint(body) if options.remat else body
    final, measured = jax.lax.scan(body, start.astype(jnp.float32), jax.tree.map(jnp.asarray, plan.rows))
    trace = Trace(*(jnp.asarray(x) for x in (plan.step, plan.rows.signal, plan.rows.guided)), *measured)
    return Sampled(final, None if energy is None else visit.energy(final), trace)


def unit_pixels(x0: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """`decode` of models of pixels in [-1,1]: brings them to [0,1], and cuts off what lies outside."""
    return jnp.clip(x0 * 0.5 + 0.5, 0.0, 1.0)


class _Row(NamedTuple):
    """One visit, as the scan sees it."""

    number: Any  # of the visit, for keys
    time: Any
    signal: Any
    following: Any
    direction: Any
    spread: Any
    guided: Any
    again: Any  # noise is put back afterwards, and the step repeated


class _Plan(NamedTuple):
    step: np.ndarray
    rows: _Row  # of arrays [V]

    @property
    def draws(self) -> bool:
        return bool((self.rows.spread > 0).any() or self.rows.again.any())


def _plan(schedule: Schedule, options: GuidanceOptions, steered: bool) -> _Plan:
    """The visits in order; recurrences are visits of their own, so that one scan holds them all."""
    schedule = Schedule(*map(np.asarray, schedule))
    low, high = options.window
    inside = steered & (schedule.signal >= low) & (schedule.signal <= high)
    times = np.where(inside, options.recurrences, 1)
    step = np.repeat(np.arange(len(times), dtype=np.int32), times)
    last = np.append(step[1:] != step[:-1], True)
    taken = (schedule.timesteps, schedule.signal, schedule.following, schedule.direction, schedule.spread, inside)
    return _Plan(step, _Row(np.arange(len(step), dtype=np.int32), *(x[step] for x in taken), ~last))


class _Visit:
    """One visit of one step: the guided noise prediction, and the step with it."""

    def __init__(self, denoiser, energy, decode, options: GuidanceOptions, dtype, cond, plan: _Plan):
        self.options, self.dtype, self.plan = options, dtype, plan
        light = jax.checkpoint if options.remat else (lambda function: function)
        self._denoise = light(lambda z, times: denoiser(z, times, cond))
        # JAX hashes what it rematerialises, which an energy full of tracers is not: hence functions around.
        self._decode = light(lambda x0: x0 if decode is None else decode(x0))
        self._energy = None if energy is None else light(lambda pixels: energy(pixels))

    def eps(self, z: Array, time: Array) -> Array:
        times = jnp.full(z.shape[0], time, jnp.int32)
        return self._denoise(z.astype(self.dtype), times).astype(jnp.float32)

    def energy(self, x0: Array) -> Array:
        found = jnp.asarray(self._energy(self._decode(x0).astype(jnp.float32)))
        if found.shape != x0.shape[:1]:
            raise ValueError(f"energy: expected one number per sample, shape {x0.shape[:1]}, found {found.shape}")
        return found.astype(jnp.float32)

    def noise(self, z: Array, row: _Row) -> tuple[Array, tuple[Array, ...]]:
        """Predicted noise with guidance, and what the trace says of it."""
        guided, options = self.plan.rows.guided, self.options
        if not guided.any():
            return self._unguided(z, row)
        steers = options.forward or options.backward_steps > 0
        how = self._guided if steers else self._watched
        return how(z, row) if guided.all() else jax.lax.cond(row.guided, how, self._unguided, z, row)

    def _unguided(self, z: Array, row: _Row):
        nothing = jnp.zeros(z.shape[0])
        return self.eps(z, row.time), (nothing + jnp.nan, nothing, nothing, nothing.astype(bool))

    def _watched(self, z: Array, row: _Row):
        """Scale 0: the energy is measured, nothing is moved."""
        eps, (_, *zeros) = self._unguided(z, row)
        return eps, (self.energy(schedules.clean(z, eps, row.signal)), *zeros)

    def _guided(self, z: Array, row: _Row):
        eps, values, norm, guarded = self._forward(z, row)
        displacement = jnp.zeros_like(norm)
        if self.options.backward_steps:
            x0 = schedules.clean(z, eps, row.signal)
            moved, failed = displace.descend(self.energy, x0, self.options)
            shifted = eps - jnp.sqrt(row.signal / (1 - row.signal)) * moved
            eps, guarded, displacement = shifted, guarded | failed, _norm(moved)
        return eps, (values, norm, displacement, guarded)

    def _forward(self, z: Array, row: _Row) -> tuple[Array, Array, Array, Array]:
        """Noise after forward guidance; energy, gradient norm, and where these are no use, each [B]."""
        options = self.options

        def total(z: Array):
            eps = self.eps(z, row.time)
            used = eps if options.through_denoiser else jax.lax.stop_gradient(eps)
            values = self.energy(schedules.clean(z, used, row.signal))
            return values.sum(), (values, eps)  # samples are independent: the sum's gradient is each one's own

        if not options.forward:
            _, (values, eps) = total(z)
            return eps, values, jnp.zeros_like(values), ~jnp.isfinite(values)
        (_, (values, eps)), gradient = jax.value_and_grad(total, has_aux=True)(z)
        norm = _norm(gradient)
        shift = jnp.sqrt(1 - row.signal) * displace.rows(self._strength(norm, eps), z) * gradient
        good = jnp.isfinite(values) & jnp.isfinite(norm) & jnp.isfinite(shift).all(tuple(range(1, z.ndim)))
        return jnp.where(displace.rows(good, z), eps + shift, eps), values, norm, ~good

    def _strength(self, norm: Array, eps: Array) -> Array:
        """What the gradient is multiplied by, [B]; 0 where it has no direction."""
        options = self.options
        length = jnp.minimum(norm, options.max_norm)
        if options.normalise == "unit":
            length = jnp.ones_like(norm)
        elif options.normalise == "eps":
            length = _norm(jax.lax.stop_gradient(eps))
        return options.scale * jnp.where(norm > 0, length / jnp.where(norm > 0, norm, 1.0), 0.0)

    def step(self, z: Array, eps: Array, row: _Row, keys: Array | None) -> Array:
        """From z to what follows; back to z's noise level if the step is to be repeated."""
        x0 = schedules.clean(z, eps, row.signal)
        if self.options.clean_range is not None:
            x0 = jnp.clip(x0, *self.options.clean_range)
            eps = (z - jnp.sqrt(row.signal) * x0) / jnp.sqrt(1 - row.signal)
        after = jnp.sqrt(row.following) * x0 + row.direction * eps
        if (self.plan.rows.spread > 0).any():
            after = after + row.spread * _draw(keys, 2 * row.number, z)
        if self.plan.rows.again.any():
            kept = row.signal / row.following
            back = schedules.noisy(after, _draw(keys, 2 * row.number + 1, z), kept)
            after = jnp.where(row.again, back, after)
        return after


def _draw(keys: Array, number: Array, like: Array) -> Array:
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, number), like.shape[1:]))(keys)


def _per_sample(key: Array, batch: int) -> Array:
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError("key: expected jax.random.key(seed), or an array of such keys, one per sample")
    if key.ndim == 0:
        return jax.vmap(lambda number: jax.random.fold_in(key, number))(jnp.arange(batch))
    if key.shape != (batch,):
        raise ValueError(f"key: expected one key, or {batch}, one per sample; found shape {key.shape}")
    return key


def _norm(x: Array) -> Array:
    """Euclidean norm of each sample, [B]; its own gradient is finite at 0."""
    squares = jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim)))
    none = squares == 0
    return jnp.where(none, 0.0, jnp.sqrt(jnp.where(none, 1.0, squares)))


__all__ = ["GuidanceOptions", "Sampled", "Trace", "noise", "sample", "unit_pixels"]
