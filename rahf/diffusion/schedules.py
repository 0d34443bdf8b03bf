"""How much noise there is at each timestep of a diffusion, and the steps by which a sampler removes it.

A variance-preserving diffusion is described by its ``alphas_cumprod``, abar_t for short: ``z_t = sqrt(abar_t) x0 +
sqrt(1 - abar_t) n``. A sampler visits some of the timesteps. All numbers that its steps need are computed here in
float64, once, so that a step is three products:

    z' = sqrt(alphas_cumprod_prev) · x0 + direction · eps + std_dev · n

    alphas_cumprod = schedules.scaled_linear()              # that of Stable Diffusion
    schedule = schedules.ddim(alphas_cumprod, 50)           # or schedules.ddpm(alphas_cumprod, 200)

Names are those of `diffusers`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rahf.core import renamed
from rahf.core.errors import ArgumentError

BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
TimestepSpacing = Literal["trailing", "leading", "linspace"]

#: Below it, dividing by the square root of abar would amplify rounding errors only. Lower values count as this one, as
#: the last of `squaredcos_cap_v2`.
SMALLEST_ALPHA_CUMPROD = 1e-8

_RENAMED = dict(
    signals="alphas_cumprod", steps="num_inference_steps", spacing="timestep_spacing", offset="steps_offset"
)


class Schedule(NamedTuple):
    """The steps of a sampler, first the noisiest. NumPy arrays, one entry per step.

    Attributes:
      timesteps: int32 [N], the timesteps that the denoiser is given.
      alphas_cumprod: float32 [N], ``abar`` of the latents before the step, in (0,1).
      alphas_cumprod_prev: float32 [N], ``abar`` after the step, in (0,1]; 1 means clean.
      direction: float32 [N], factor of the predicted noise that is put back.
      std_dev: float32 [N], standard deviation of the fresh noise; 0 everywhere in a deterministic sampler.
    """

    timesteps: Int[np.ndarray, " n"]
    alphas_cumprod: Float[np.ndarray, " n"]
    alphas_cumprod_prev: Float[np.ndarray, " n"]
    direction: Float[np.ndarray, " n"]
    std_dev: Float[np.ndarray, " n"]

    @property
    def stochastic(self) -> bool:
        """Whether any step draws noise."""
        return bool((np.asarray(self.std_dev) > 0).any())


def linear(
    num_train_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
) -> Float[np.ndarray, " t"]:
    """``alphas_cumprod`` of betas that grow linearly (Ho et al. 2020).

    Returns:
      float64 [num_train_timesteps], descending, in (0,1).
    """
    return np.cumprod(1 - np.linspace(beta_start, beta_end, num_train_timesteps))


def scaled_linear(
    num_train_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
) -> Float[np.ndarray, " t"]:
    """``alphas_cumprod`` of betas whose roots grow linearly (Stable Diffusion 1 and 2). Returns as `linear`."""
    return np.cumprod(1 - np.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps) ** 2)


def squaredcos_cap_v2(
    num_train_timesteps: int = 1000, offset: float = 0.008, max_beta: float = 0.999
) -> Float[np.ndarray, " t"]:
    """``alphas_cumprod`` that fall like a squared cosine, betas up to `max_beta` (Nichol & Dhariwal 2021). Returns as
    `linear`."""
    wave = np.cos((np.arange(num_train_timesteps + 1) / num_train_timesteps + offset) / (1 + offset) * np.pi / 2) ** 2
    return np.cumprod(1 - np.minimum(1 - wave[1:] / wave[:-1], max_beta))


def alphas_cumprod(beta_schedule: BetaSchedule, num_train_timesteps: int = 1000) -> Float[np.ndarray, " t"]:
    """``alphas_cumprod`` of a beta schedule by its name in `diffusers`, with its published constants.

    Raises:
      ValueError: an unknown name.
    """
    functions = {"linear": linear, "scaled_linear": scaled_linear, "squaredcos_cap_v2": squaredcos_cap_v2}
    if beta_schedule not in functions:
        raise ArgumentError(f"beta_schedule: expected {', '.join(functions)}, found {beta_schedule!r}")
    return functions[beta_schedule](num_train_timesteps)


@renamed.arguments(**_RENAMED)
def ddim(
    alphas_cumprod: Float[np.ndarray, " t"],
    num_inference_steps: int,
    eta: float = 0.0,
    timestep_spacing: TimestepSpacing = "trailing",
    steps_offset: int = 0,
    set_alpha_to_one: bool = True,
) -> Schedule:
    """Steps of DDIM (Song et al. 2021, equations 12 and 16).

    Args:
      alphas_cumprod: [T] in (0,1), descending: what the denoiser was trained with.
      num_inference_steps: how many of the T timesteps are visited.
      eta: 0 draws no noise; 1 draws as much as DDPM; between them in proportion.
      timestep_spacing: which timesteps. "trailing": T-1 first, equally spaced (starts at pure noise; Lin et al.
        2024); "leading": equally spaced from timestep 0 on, plus `steps_offset` (Stable Diffusion: 1); "linspace":
        T-1 first, 0 last.
      steps_offset: see timestep_spacing.
      set_alpha_to_one: the last step leads to abar = 1, a clean picture; False (Stable Diffusion): to abar of
        timestep 0.

    Raises:
      ValueError: numbers that make no sense; names them.
    """
    if not (np.isfinite(eta) and 0 <= eta <= 1):
        raise ArgumentError(f"eta: expected 0 (deterministic) to 1 (as much noise as DDPM), found {eta}")
    final = 1.0 if set_alpha_to_one else float(alphas_cumprod[0])
    visited = _visited(alphas_cumprod, num_inference_steps, timestep_spacing, steps_offset, final)
    std_dev = eta * np.sqrt(_posterior_variance(*visited[1:]))
    return _schedule(*visited, std_dev, std_dev)


@renamed.arguments(**_RENAMED)
def ddpm(
    alphas_cumprod: Float[np.ndarray, " t"],
    num_inference_steps: int,
    variance: Literal["small", "large"] = "small",
    timestep_spacing: TimestepSpacing = "trailing",
    steps_offset: int = 0,
) -> Schedule:
    """Steps of ancestral sampling (Ho et al. 2020, algorithm 2), also over some of the timesteps only.

    With ``beta = 1 - abar/abar'`` for a step from `abar` to `abar'`, the mean is that of the posterior of z'
    given z and the predicted clean picture; the variance is ``beta (1 - abar')/(1 - abar)`` ("small", of the
    posterior itself) or ``beta`` ("large"). The last step draws nothing.

    Args:
      variance: see above.
      alphas_cumprod, num_inference_steps, timestep_spacing, steps_offset: as in `ddim`.
    """
    if variance not in ("small", "large"):
        raise ArgumentError(f"variance: expected 'small' or 'large', found {variance!r}")
    timesteps, before, after = _visited(alphas_cumprod, num_inference_steps, timestep_spacing, steps_offset, 1.0)
    posterior = np.sqrt(_posterior_variance(before, after))
    large = np.where(after < 1, np.sqrt(1 - before / after), 0.0)
    return _schedule(timesteps, before, after, posterior, posterior if variance == "small" else large)


def pred_original_sample(
    z: Float[Array, "*z"], eps: Float[Array, "*z"], alpha_cumprod: Float[Array, ""]
) -> Float[Array, "*z"]:
    """The clean estimate ``x0 = (z - sqrt(1 - abar) eps) / sqrt(abar)``, with the root guarded near zero."""
    guarded = jnp.maximum(alpha_cumprod, SMALLEST_ALPHA_CUMPROD)
    return (z - jnp.sqrt(1 - alpha_cumprod) * eps) / jnp.sqrt(guarded)


def add_noise(
    x0: Float[Array, "*z"], noise: Float[Array, "*z"], alpha_cumprod: Float[Array, "*#z"]
) -> Float[Array, "*z"]:
    """``z = sqrt(abar) x0 + sqrt(1 - abar) noise``."""
    return jnp.sqrt(alpha_cumprod) * x0 + jnp.sqrt(1 - alpha_cumprod) * noise


def _visited(
    alphas_cumprod: np.ndarray, steps: int, spacing: str, offset: int, final: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Timesteps, descending, and the float64 abar before and after each step."""
    alphas_cumprod = np.asarray(alphas_cumprod, np.float64)
    one_per_time = alphas_cumprod.ndim == 1 and alphas_cumprod.size
    if not one_per_time or not ((alphas_cumprod < 1) & (alphas_cumprod > 0)).all():
        raise ArgumentError(
            "alphas_cumprod: expected one number per timestep, above 0 and below 1, found "
            f"shape {alphas_cumprod.shape}"
            + (f" from {alphas_cumprod.min():g} to {alphas_cumprod.max():g}" if alphas_cumprod.size else "")
            + "; a schedule that ends without any signal cannot be sampled through eps: leave its last timestep out"
        )
    if not (np.diff(alphas_cumprod) < 0).all():
        raise ArgumentError("alphas_cumprod: expected to fall from each timestep to the next")
    count = len(alphas_cumprod)
    if not 1 <= steps <= count:
        raise ArgumentError(f"num_inference_steps: expected 1 to {count}, the number of timesteps, found {steps}")
    if spacing == "trailing":
        timesteps = np.round(count - np.arange(steps) * (count / steps)).astype(np.int64) - 1
    elif spacing == "leading":
        timesteps = (np.arange(steps) * (count // steps))[::-1] + offset
    elif spacing == "linspace":
        timesteps = np.round(np.linspace(0, count - 1, steps))[::-1].astype(np.int64)
    else:
        raise ArgumentError(f"timestep_spacing: expected 'trailing', 'leading' or 'linspace', found {spacing!r}")
    if timesteps[0] >= count or timesteps[-1] < 0:
        raise ArgumentError(
            f"steps_offset: {offset} leads to timestep {timesteps[0]}, beyond the last one, {count - 1}"
        )
    before = np.maximum(alphas_cumprod[timesteps], SMALLEST_ALPHA_CUMPROD)
    return timesteps.astype(np.int32), before, np.append(before[1:], final)


def _posterior_variance(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return (1 - after) / (1 - before) * (1 - before / after)


def _schedule(timesteps, before, after, removed, std_dev) -> Schedule:
    """`removed` is the standard deviation whose variance the direction leaves room for."""
    direction = np.sqrt(np.maximum(1 - after - removed**2, 0.0))
    return Schedule(timesteps, *(x.astype(np.float32) for x in (before, after, direction, std_dev)))


__getattr__ = renamed.moved(__name__, {"cosine": f"{__name__}:squaredcos_cap_v2"})
