"""Texture, spectral volume and normalised volume: round trips, and sinusoids whose terms are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rahf.core.errors import ArgumentError
from rahf.motion import spectrum as spectrum_lib

T = 150


def texture(seed=0, terms=16, shape=(3, 4)):
    """A random texture without frequencies above `terms`."""
    rng = np.random.default_rng(seed)
    volume = rng.normal(size=(terms, *shape, 2)) + 1j * rng.normal(size=(terms, *shape, 2))
    volume[0] = volume[0].real
    return np.fft.irfft(volume, n=T, axis=0).astype(np.float32)


def test_a_band_limited_texture_comes_back():
    motion = texture()
    volume = spectrum_lib.to_spectrum(motion)
    assert volume.shape == (16, 3, 4, 2) and volume.dtype == jnp.complex64
    np.testing.assert_allclose(spectrum_lib.to_texture(volume, T), motion, atol=2e-6)


def test_the_inverse_fills_conjugate_bins():
    """The reference: a complex inverse transform over all T bins, filled symmetrically."""
    volume = np.asarray(spectrum_lib.to_spectrum(texture(1)), np.complex128)
    full = np.zeros((T, *volume.shape[1:]), complex)
    full[:16], full[-15:] = volume, volume[:0:-1].conj()
    reference = np.fft.ifft(full, axis=0)
    assert np.abs(reference.imag).max() < 1e-12
    np.testing.assert_allclose(spectrum_lib.to_texture(volume.astype(np.complex64), T), reference.real, atol=1e-6)


@pytest.mark.parametrize("term", [1, 7, 15])
def test_a_sinusoid_has_all_its_energy_in_one_term(term):
    wave = np.cos(2 * np.pi * term * np.arange(T) / T + 0.4)
    motion = np.zeros((T, 1, 1, 2), np.float32)
    motion[..., 0] = 3 * wave[:, None, None]
    volume = np.asarray(spectrum_lib.to_spectrum(motion))
    assert abs(volume[term, 0, 0, 0] - 3 * T / 2 * np.exp(0.4j)) < 1e-3
    others = np.abs(volume).copy()
    others[term] = 0
    assert others.max() < 1e-3


@pytest.mark.parametrize(("terms", "frames"), [(16, 150), (4, 7), (5, 8)])
def test_the_motion_at_a_time_is_that_of_the_frame(terms, frames):
    """Also with the highest term of an even number of frames; between frames it is smooth, after T it repeats."""
    rng = np.random.default_rng(2)
    motion = jnp.asarray(rng.normal(size=(frames, 2, 3, 2)), jnp.float32)
    volume = spectrum_lib.to_spectrum(motion, terms)
    frame = spectrum_lib.to_texture(volume, frames)
    at = jax.jit(lambda time: spectrum_lib.at_time(volume, frames, time))
    for time in (0, 3, frames - 1):
        np.testing.assert_allclose(at(float(time)), frame[time], atol=1e-5)
    np.testing.assert_allclose(at(1.5 + 40 * frames), at(1.5), atol=1e-3)


def test_channels_are_real_and_imaginary_of_x_then_y():
    volume = jnp.array([[[[1 + 2j, 3 + 4j]]]], jnp.complex64)
    channels = spectrum_lib.to_channels(volume)
    assert channels.tolist() == [[[[1, 2, 3, 4]]]]
    assert spectrum_lib.from_channels(channels).tolist() == volume.tolist()


def test_normalisation_follows_equation_4_and_back():
    channels = np.random.default_rng(3).normal(size=(5, 6, 3, 4, 4)).astype(np.float32)
    channels *= np.float32(10.0) ** -np.arange(6)[:, None, None, None]  # the energy falls with the frequency
    scales = spectrum_lib.frequency_scales(channels)
    assert scales.shape == (6,) and scales[0] > 5 * scales[1] > 0
    normalised = np.asarray(spectrum_lib.normalise(channels, scales))
    reference = np.sign(channels) * np.sqrt(np.abs(channels) / scales[:, None, None, None])
    np.testing.assert_allclose(normalised, reference, rtol=1e-6)
    outside = (np.abs(normalised) > 1).mean((0, 2, 3, 4))
    assert (np.abs(outside - 0.05) < 0.01).all()  # 5% in every frequency
    np.testing.assert_allclose(spectrum_lib.denormalise(normalised, scales), channels, rtol=1e-4, atol=1e-9)


def test_normalisation_has_a_gradient_at_zero():
    total = lambda x: spectrum_lib.normalise(x, jnp.ones(1)).sum()  # noqa: E731
    gradient = jax.jit(jax.grad(total))(jnp.zeros((1, 1, 1, 4)))
    assert np.isfinite(gradient).all()


def test_adaptive_against_plain_normalisation():
    """One scale for all frequencies leaves nothing of the high ones; one each uses the range in all of them."""
    rng = np.random.default_rng(4)
    channels = rng.laplace(size=(8, 16, 4, 4, 4)).astype(np.float32) / (1 + np.arange(16.0))[:, None, None, None] ** 2
    used = lambda values: np.percentile(np.abs(values[:, -1]), 95)  # noqa: E731
    scales = spectrum_lib.frequency_scales(channels)
    plain = spectrum_lib.normalise(channels, scales, "plain")
    np.testing.assert_allclose(plain, channels / scales.max(), rtol=1e-6)
    np.testing.assert_allclose(spectrum_lib.denormalise(plain, scales, "plain"), channels, rtol=1e-5)
    plain, adaptive = np.asarray(plain), spectrum_lib.normalise(channels, scales)
    assert used(plain) < 0.02 and abs(used(np.asarray(adaptive)) - 1) < 0.01


@pytest.mark.parametrize("terms", [0, 77])
def test_terms_that_a_texture_does_not_have(terms):
    with pytest.raises(ArgumentError, match=f"150 frames have 1 to 76 frequencies, found {terms}"):
        spectrum_lib.to_spectrum(np.zeros((T, 1, 1, 2)), terms)
