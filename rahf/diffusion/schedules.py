"""How much noise there is at each time of a diffusion, and the steps by which a sampler takes it away.

A variance-preserving diffusion is described by its signals ``abar_t``: ``z_t = sqrt(abar_t) x0 + sqrt(1 -
abar_t) n``. A sampler visits some of the times; all numbers that its steps need are worked out here in
float64, once, so that a step is three products:

    z' = sqrt(following) · x0 + direction · eps + spread · n

    signals = schedules.scaled_linear()              # those of Stable Diffusion
    schedule = schedules.ddim(signals, 50)           # or schedules.ddpm(signals, 200)
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Spacing = Literal["trailing", "leading", "linspace"]

#: Below it, dividing by the square root of the signal would only make noise of rounding errors.
SMALLEST_SIGNAL = 1e-8


class Schedule(NamedTuple):
    """The steps of a sampler, first the noisiest. NumPy arrays, one entry per step.

    Attributes:
      timesteps: int32 [N], the times that the denoiser is told.
      signal: float32 [N], ``abar`` of the latents before the step, in (0,1).
      following: float32 [N], ``abar`` after it, in (0,1]; 1 for the last one: clean.
      direction: float32 [N], how much of the predicted noise is put back.
      spread: float32 [N], standard deviation of the fresh noise; 0 everywhere: deterministic.
    """

    timesteps: Int[np.ndarray, " n"]
    signal: Float[np.ndarray, " n"]
    following: Float[np.ndarray, " n"]
    direction: Float[np.ndarray, " n"]
    spread: Float[np.ndarray, " n"]

    @property
    def stochastic(self) -> bool:
        """Whether any step draws noise."""
        return bool((np.asarray(self.spread) > 0).any())


def linear(count: int = 1000, first: float = 1e-4, last: float = 0.02) -> Float[np.ndarray, " t"]:
    """Signals of betas that grow linearly (Ho et al. 2020). Returns float64 [count], descending, in (0,1)."""
    return np.cumprod(1 - np.linspace(first, last, count))


def scaled_linear(count: int = 1000, first: float = 0.00085, last: float = 0.012) -> Float[np.ndarray, " t"]:
    """Signals of betas whose roots grow linearly (Stable Diffusion 1 and 2). Returns float64 [count]."""
    return np.cumprod(1 - np.linspace(first**0.5, last**0.5, count) ** 2)


def cosine(count: int = 1000, offset: float = 0.008, most: float = 0.999) -> Float[np.ndarray, " t"]:
    """Signals that fall like a squared cosine (Nichol & Dhariwal 2021), betas up to `most`. Float64 [count]."""
    wave = np.cos((np.arange(count + 1) / count + offset) / (1 + offset) * np.pi / 2) ** 2
    return np.cumprod(1 - np.minimum(1 - wave[1:] / wave[:-1], most))


def ddim(
    signals: Float[np.ndarray, " t"],
    steps: int,
    eta: float = 0.0,
    spacing: Spacing = "trailing",
    offset: int = 0,
) -> Schedule:
    """Steps of DDIM (Song et al. 2021, equations 12 and 16).

    Args:
      signals: [T] in (0,1), descending: what the denoiser was trained with.
      steps: how many of the T times are visited.
      eta: 0 draws no noise; 1 draws as much as DDPM; between them in proportion.
      spacing: which times. "trailing": T-1 first, equally spaced (starts at pure noise; Lin et al. 2024);
        "leading": equally spaced from time 0 on, plus `offset` (Stable Diffusion: offset 1); "linspace": T-1
        first, 0 last.
      offset: see spacing.

    Raises:
      ValueError: numbers that make no sense; names them.
    """
    if not (np.isfinite(eta) and 0 <= eta <= 1):
        raise ValueError(f"eta: expected 0 (deterministic) to 1 (as much noise as DDPM), found {eta}")
    times, before, after = _visited(signals, steps, spacing, offset)
    spread = eta * np.sqrt(_posterior_variance(before, after))
    return _schedule(times, before, after, spread, spread)


def ddpm(
    signals: Float[np.ndarray, " t"],
    steps: int,
    variance: Literal["small", "large"] = "small",
    spacing: Spacing = "trailing",
    offset: int = 0,
) -> Schedule:
    """Steps of ancestral sampling (Ho et al. 2020, algorithm 2), also over some of the times only.

    With ``beta = 1 - abar/abar'`` for a step from `abar` to `abar'`, the mean is that of the posterior of z'
    given z and the predicted clean picture; the variance is ``beta (1 - abar')/(1 - abar)`` ("small", of the
    posterior itself) or ``beta`` ("large"). The last step draws nothing.

    Args:
      variance: see above.
      signals, steps, spacing, offset: as in `ddim`.
    """
    if variance not in ("small", "large"):
        raise ValueError(f"variance: expected 'small' or 'large', found {variance!r}")
    times, before, after = _visited(signals, steps, spacing, offset)
    posterior = np.sqrt(_posterior_variance(before, after))
    large = np.where(after < 1, np.sqrt(1 - before / after), 0.0)
    return _schedule(times, before, after, posterior, posterior if variance == "small" else large)


def clean(z: Float[Array, "*z"], eps: Float[Array, "*z"], signal: Float[Array, ""]) -> Float[Array, "*z"]:
    """The clean estimate ``x0 = (z - sqrt(1 - abar) eps) / sqrt(abar)``, with the root guarded near zero."""
    return (z - jnp.sqrt(1 - signal) * eps) / jnp.sqrt(jnp.maximum(signal, SMALLEST_SIGNAL))


def noisy(x0: Float[Array, "*z"], noise: Float[Array, "*z"], signal: Float[Array, "*#z"]) -> Float[Array, "*z"]:
    """``z = sqrt(abar) x0 + sqrt(1 - abar) noise``."""
    return jnp.sqrt(signal) * x0 + jnp.sqrt(1 - signal) * noise


def _visited(signals, steps: int, spacing: str, offset: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times, descending, and the float64 signals before and after each step."""
    signals = np.asarray(signals, np.float64)
    if signals.ndim != 1 or not signals.size or not (signals < 1).all() or not (signals >= SMALLEST_SIGNAL).all():
        raise ValueError(
            f"signals: expected one number per time, from {SMALLEST_SIGNAL:g} to below 1, found shape {signals.shape}"
            + (f" from {signals.min():g} to {signals.max():g}" if signals.size else "")
            + "; a schedule that ends without any signal cannot be sampled through eps: leave its last time out"
        )
    if not (np.diff(signals) < 0).all():
        raise ValueError("signals: expected to fall from each time to the next")
    count = len(signals)
    if not 1 <= steps <= count:
        raise ValueError(f"steps: expected 1 to {count}, the number of times, found {steps}")
    if spacing == "trailing":
        times = np.round(count - np.arange(steps) * (count / steps)).astype(np.int64) - 1
    elif spacing == "leading":
        times = (np.arange(steps) * (count // steps))[::-1] + offset
    elif spacing == "linspace":
        times = np.round(np.linspace(0, count - 1, steps))[::-1].astype(np.int64)
    else:
        raise ValueError(f"spacing: expected 'trailing', 'leading' or 'linspace', found {spacing!r}")
    if times[0] >= count or times[-1] < 0:
        raise ValueError(f"offset: {offset} leads to time {times[0]}, beyond the last one, {count - 1}")
    before = signals[times]
    return times.astype(np.int32), before, np.append(before[1:], 1.0)


def _posterior_variance(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return (1 - after) / (1 - before) * (1 - before / after)


def _schedule(times, before, after, removed, spread) -> Schedule:
    """`removed` is the standard deviation whose variance the direction leaves room for."""
    direction = np.sqrt(np.maximum(1 - after - removed**2, 0.0))
    return Schedule(times, *(x.astype(np.float32) for x in (before, after, direction, spread)))
