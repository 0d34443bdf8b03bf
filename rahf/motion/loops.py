"""Motion that ends as it begins (Li et al. 2024, equation 5).

The loop error of a texture is ``|F_T - F_1| + |F_T' - F_1'|``: position and velocity at both ends. `loop_energy` is
that error as an energy for Universal Guidance, which is the paper's self-guidance; `close` is its counterpart where a
spectral volume is at hand and no model is to be guided.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from rahf.core.errors import ArgumentError
from rahf.motion import spectrum as spectrum_lib

#: What the second term compares: velocities, as the paper's text has it, or gradients in space, as its symbol.
Gradient = Literal["temporal", "spatial"]


def loop_error(texture: Float[Array, "t h w 2"], gradient: Gradient = "temporal") -> Float[Array, ""]:
    """Equation 5 of one texture: how last and first frame differ, and their derivatives; float32, pixels.

    Absolute differences are summed over x and y and averaged over pixels: the size of the picture does not count.

    Raises:
      ArgumentError: fewer than two frames, or another kind of gradient.
    """
    if texture.shape[0] < 2:
        raise ArgumentError(f"loop_error: expected two frames or more, found {texture.shape[0]}")
    first, last = texture[0], texture[-1]
    total = _mean(last - first)
    if gradient == "temporal":
        return total + _mean((last - texture[-2]) - (texture[1] - first))
    if gradient == "spatial":
        return total + sum(_mean(jnp.diff(last, axis=axis) - jnp.diff(first, axis=axis)) for axis in (0, 1))
    raise ArgumentError(f"gradient: expected 'temporal' or 'spatial', found {gradient!r}")


def loop_energy(
    frames: int, gradient: Gradient = "temporal"
) -> Callable[[Float[Array, "b k h w 4"]], Float[Array, " b"]]:
    """The loop error of a batch of spectral volumes, as an energy for Universal Guidance.

    It takes float32 [B,K,h,w,4], `spectrum.to_channels` of the volumes: what `decode` of
    `rahf.diffusion.sample.universal_guidance.sample` gives for clean latents.
    """

    def one(channels: Float[Array, "k h w 4"]) -> Float[Array, ""]:
        return loop_error(spectrum_lib.to_texture(spectrum_lib.from_channels(channels), frames), gradient)

    return jax.vmap(one)


def close(spectrum: Complex[np.ndarray, "k h w 2"], frames: int, strength: float) -> Complex[np.ndarray, "k h w 2"]:
    """The spectral volume next to a given one whose loop error is small.

    It minimises ``sum_t |F_t - F⁰_t|² + strength · (|F_T - F_1|² + |F_T' - F_1'|²)`` exactly. The squared loop error
    falls monotonically in `strength`, and a motion that is a loop already stays as it is.

    Args:
      spectrum: complex [K,h,w,2].
      frames: T of its texture, 3 or more.
      strength: u, 0 or more; 0 changes nothing.

    Returns:
      complex64 [K,h,w,2].

    Raises:
      ArgumentError: other numbers.
    """
    terms = spectrum.shape[0]
    spectrum_lib.check_terms(terms, frames)
    if frames < 3 or not (math.isfinite(strength) and strength >= 0):
        raise ArgumentError(f"close: expected 3 frames or more and a strength of 0 or more, found {frames}, {strength}")
    spectrum = np.asarray(spectrum)
    # The texture is linear in real and imaginary parts: its rows are the inverse transforms of unit terms.
    units = np.concatenate([np.eye(terms), 1j * np.eye(terms)])
    linear = np.fft.irfft(units, n=frames, axis=1)  # [2K,T]; the imaginary part of term 0 gives nothing
    ends = np.stack([linear[:, -1] - linear[:, 0], linear[:, -1] - linear[:, -2] - linear[:, 1] + linear[:, 0]])
    energy = (linear**2).sum(1)
    free = energy > 1e-12 * energy.max()
    inverse = np.where(free, 1 / np.where(free, energy, 1.0), 0.0)
    # Woodbury: the change lies in the span of the two conditions at the ends.
    spread = inverse[:, None] * ends.T
    gain = strength * spread @ np.linalg.inv(np.eye(2) + strength * ends @ spread)
    parts = np.concatenate([spectrum.real, spectrum.imag]).reshape(2 * terms, -1).astype(np.float64)
    parts = parts - gain @ (ends @ parts)
    real, imaginary = parts.reshape(2, *spectrum.shape)
    return (real + 1j * imaginary).astype(np.complex64)


def loop_seconds(seconds: float, period: float) -> float:
    """The length of a loop nearest to `seconds`: the whole number of periods of the motion, one at least."""
    return max(1, round(seconds / period)) * period


def _mean(difference: Array) -> Array:
    # Not `mean`: a picture one pixel high has no differences between rows.
    return jnp.abs(difference).sum() / max(difference.size // 2, 1)
