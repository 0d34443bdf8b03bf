"""Motion as a texture over time, as a spectral volume, and normalised for a network (Li et al. 2024, section 3).

A motion texture holds, for every time t and every pixel p of the first frame, where that pixel has moved:
``I_t(p + F_t(p)) = I_0(p)``. Its Fourier transform over time, cut off after K terms, is the spectral volume.

    spectrum = to_spectrum(texture, terms=16)                 # complex64 [K,h,w,2]
    texture = to_texture(spectrum, frames=150)                # float32 [T,h,w,2], low frequencies only
    network_input = normalise(to_channels(spectrum), scales)  # float32 [K,h,w,4], equation 4

Displacements are (x, y) in pixels, x to the right, y down. Terms are those of `numpy.fft.rfft`, not scaled: term k of T
frames at r frames/s has the frequency k·r/T, so at 30 frames/s and T = 150 the 16 terms reach from 0 to 3 Hz.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from rahf.core.errors import ArgumentError

#: Number of frames of a texture and of terms of its spectral volume (Li et al. 2024).
FRAMES, TERMS = 150, 16
#: How a network sees a spectral volume: each frequency by its own scale (equation 4), or all by the largest one.
Normalisation = Literal["adaptive", "plain"]
#: Share of the magnitudes that lies below the scale of a frequency.
PERCENTILE = 95.0


def to_spectrum(texture: Float[Array, "t h w 2"], terms: int = TERMS) -> Complex[Array, "k h w 2"]:
    """The first terms of a texture's Fourier transform over time.

    Args:
      texture: displacements in pixels from the first frame, [T,h,w,2].
      terms: K, from 1 to T // 2 + 1.

    Returns:
      complex64 [K,h,w,2].

    Raises:
      ArgumentError: more terms than the texture has.
    """
    frames = texture.shape[0]
    check_terms(terms, frames)
    return jnp.fft.rfft(jnp.asarray(texture, jnp.float32), axis=0)[:terms]


def to_texture(spectrum: Complex[Array, "k h w 2"], frames: int = FRAMES) -> Float[Array, "t h w 2"]:
    """The texture of a spectral volume: the inverse transform with zeros above its terms, float32 [T,h,w,2].

    Raises:
      ArgumentError: the volume has more terms than `frames` frames have.
    """
    check_terms(spectrum.shape[0], frames)
    return jnp.fft.irfft(spectrum, n=frames, axis=0).astype(jnp.float32)


def at_time(spectrum: Complex[Array, "k h w 2"], frames: int, time: Float[Array, ""]) -> Float[Array, "h w 2"]:
    """Displacements at one time, also between two frames: what `to_texture` gives at whole numbers.

    Args:
      spectrum: of a texture of `frames` frames.
      frames: T, after which the motion repeats.
      time: in frames of the texture; any number.

    Returns:
      float32 [h,w,2], pixels.
    """
    factors = basis(spectrum.shape[0], frames, time)
    return jnp.einsum("k,khwc->hwc", factors.real, spectrum.real) - jnp.einsum(
        "k,khwc->hwc", factors.imag, spectrum.imag
    )


def basis(terms: int, frames: int, time: Float[Array, ""]) -> Complex[Array, " k"]:
    """What the terms are multiplied with: the real part of the sum is the displacement at `time`, in frames."""
    weights = np.full(terms, 2.0)
    weights[0] = 1.0
    if terms == frames // 2 + 1 and frames % 2 == 0:
        weights[-1] = 1.0  # the highest term of an even number of frames is its own mirror image
    # The phase is reduced to one period first: float32 would lose it in long animations.
    angle = 2 * jnp.pi * jnp.mod(jnp.arange(terms) * (jnp.mod(jnp.asarray(time, jnp.float32), frames) / frames), 1.0)
    return (weights / frames) * jnp.exp(1j * angle)


def to_channels(spectrum: Complex[Array, "*b h w 2"]) -> Float[Array, "*b h w 4"]:
    """Real and imaginary part of x, then of y: float32 [...,h,w,4], what networks see of each frequency."""
    return jnp.stack([spectrum.real, spectrum.imag], -1).reshape(*spectrum.shape[:-1], 4)


def from_channels(channels: Float[Array, "*b h w 4"]) -> Complex[Array, "*b h w 2"]:
    """The inverse of `to_channels`."""
    pairs = channels.reshape(*channels.shape[:-1], 2, 2)
    return jax.lax.complex(pairs[..., 0], pairs[..., 1])


def frequency_scales(channels: Float[np.ndarray, "n k h w 4"]) -> Float[np.ndarray, " k"]:
    """The 95th percentile of the magnitudes of each frequency over a training set, float32 [K].

    Magnitudes of exactly 0 do not count, as in `rahf prepare motion`: in drawn scenes most pixels stand still. At least
    1e-6.
    """
    magnitudes = np.abs(np.moveaxis(np.asarray(channels), 1, 0)).reshape(channels.shape[1], -1)
    scales = [np.percentile(one[one > 0], PERCENTILE) if (one > 0).any() else 0.0 for one in magnitudes]
    return np.maximum(scales, 1e-6).astype(np.float32)


def normalise(
    channels: Float[Array, "*b k h w 4"], scales: Float[Array, " k"], kind: Normalisation = "adaptive"
) -> Float[Array, "*b k h w 4"]:
    """Frequency-adaptive normalisation: ``sign(S) sqrt(|S / s_f|)`` (equation 4). 95% of the values lie in [-1,1].

    The energy of natural motion falls so steeply with the frequency that scaling by one number leaves nothing of the
    high ones. The root spreads small values. "plain" is the ablation: ``S / max_f s_f``.
    """
    if kind == "plain":
        return channels / jnp.max(jnp.asarray(scales))
    ratio = jnp.abs(channels) / _per_frequency(scales)
    # The root has no derivative at 0.
    root = jnp.where(ratio > 0, jnp.sqrt(jnp.where(ratio > 0, ratio, 1.0)), 0.0)
    return jnp.sign(channels) * root


def denormalise(
    normalised: Float[Array, "*b k h w 4"], scales: Float[Array, " k"], kind: Normalisation = "adaptive"
) -> Float[Array, "*b k h w 4"]:
    """The inverse of `normalise`: ``sign(S') S'² s_f``; of "plain", ``S' max_f s_f``."""
    if kind == "plain":
        return normalised * jnp.max(jnp.asarray(scales))
    return normalised * jnp.abs(normalised) * _per_frequency(scales)


def check_terms(terms: int, frames: int) -> None:
    """Raises ArgumentError unless a texture of `frames` frames has this number of terms."""
    if not 1 <= terms <= frames // 2 + 1:
        raise ArgumentError(f"terms: {frames} frames have 1 to {frames // 2 + 1} frequencies, found {terms}")


def _per_frequency(scales: Array) -> Array:
    return jnp.asarray(scales)[:, None, None, None]
