"""Loops: harmonics are loops already, closing and guidance lower the loop error monotonically."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rahf.core.errors import ArgumentError
from rahf.diffusion import schedules
from rahf.diffusion.sample import universal_guidance
from rahf.diffusion.sample.options import GuidanceOptions
from rahf.motion import loops
from rahf.motion import spectrum as spectrum_lib

T = 150


def drifting(seed=0):
    """The volume of a motion that sways and drifts away: its loop has a visible seam."""
    time = np.arange(T)[:, None, None, None] / T
    rng = np.random.default_rng(seed)
    phase, speed = rng.random((1, 3, 4, 2)), rng.uniform(3, 6, (1, 3, 4, 2))
    texture = np.cos(2 * np.pi * (3 * time + phase)) + speed * time
    return np.asarray(spectrum_lib.to_spectrum(texture))


def test_the_error_by_hand():
    texture = np.zeros((4, 1, 2, 2), np.float32)
    texture[:, 0, 0, 0] = [0, 1, 2, 5]
    error = jax.jit(loops.loop_error, static_argnums=1)
    # Position: 5. Velocity: 3 at the end, 1 at the beginning. Averaged over two pixels.
    assert float(error(texture, "temporal")) == pytest.approx((5 + 2) / 2)
    # In space: the neighbours along x, one pair, differ by 5 more at the end; there are no neighbours along y.
    assert float(error(texture, "spatial")) == pytest.approx(5 / 2 + 5)


def test_harmonics_repeat_without_a_seam():
    """The step from the last frame to the first is a step like any other."""
    volume = np.zeros((16, 1, 1, 2), np.complex64)
    volume[3], volume[5] = 40 + 10j, -20j
    texture = np.asarray(spectrum_lib.to_texture(volume, T))
    steps = np.linalg.norm(np.diff(texture, axis=0, append=texture[:1]), axis=-1)
    assert steps[-1] <= np.sort(steps, axis=0)[-3]
    at = spectrum_lib.at_time(volume, T, float(T))
    np.testing.assert_allclose(at, texture[0], atol=1e-4)


def test_closing_lowers_the_error_monotonically_and_ends_the_seam():
    volume, errors = drifting(), []
    for strength in (0.0, 0.1, 1.0, 10.0, 1000.0):
        texture = np.asarray(spectrum_lib.to_texture(loops.close(volume, T, strength), T))
        errors.append(float(loops.loop_error(texture)))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.05 * errors[0]
    before = np.asarray(spectrum_lib.to_texture(volume, T))
    for motion, invisible in ((before, False), (texture, True)):
        neighbours = np.abs(np.diff(motion, axis=0)).mean((1, 2, 3))
        assert bool(np.abs(motion[0] - motion[-1]).mean() <= np.median(neighbours)) is invisible
    # What is no drift stays: the texture changes by less than the drift was.
    assert np.abs(texture - before).max() < 6


def test_closing_is_the_minimum():
    """Against a general solver of the same quadratic."""
    rng = np.random.default_rng(1)
    volume = (rng.normal(size=(3, 1, 1, 2)) + 1j * rng.normal(size=(3, 1, 1, 2))).astype(np.complex64)
    volume[0] = volume[0].real
    closed = loops.close(volume, 8, 2.5)

    def objective(parts):
        texture = spectrum_lib.to_texture(jax.lax.complex(parts[0], parts[1]), 8)
        reference = spectrum_lib.to_texture(volume, 8)
        ends = texture[-1] - texture[0], texture[-1] - texture[-2] - texture[1] + texture[0]
        return jnp.square(texture - reference).sum() + 2.5 * sum(jnp.square(end).sum() for end in ends)

    gradient = jax.jit(jax.grad(objective))(jnp.stack([closed.real, closed.imag]))
    assert np.abs(gradient).max() < 1e-5


def test_guidance_lowers_the_loop_error_monotonically():
    """Self-guidance (equation 5) of a toy whose best denoiser is known: one volume, drifting, with unit spread."""
    frames, terms = 24, 4
    time = np.arange(frames)[:, None, None, None] / frames
    volume = spectrum_lib.to_spectrum(np.cos(2 * np.pi * time) + 3 * time * np.ones((1, 2, 2, 2)), terms)
    mean = spectrum_lib.to_channels(volume).reshape(-1)
    abar = schedules.scaled_linear()
    table = jnp.asarray(abar, jnp.float32)

    def denoiser(z, t, cond):
        a = table[t][:, None]
        return jnp.sqrt(1 - a) * (z - jnp.sqrt(a) * mean)  # data of N(mean, 1)

    decode = lambda z: z.reshape(-1, terms, 2, 2, 4)  # noqa: E731
    energy = loops.loop_energy(frames)
    start = universal_guidance.noise(jax.random.key(0), 2, mean.shape)

    @jax.jit
    def error(scale):
        options = GuidanceOptions(scale=scale, window=(0.0, 1.0))
        schedule = schedules.ddim(abar, 20)
        return universal_guidance.sample(
            denoiser, schedule, start, energy=energy, decode=decode, options=options
        ).energy

    errors = [float(error(scale).mean()) for scale in (0.0, 0.5, 1.0, 2.0)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.9 * errors[0]


def test_the_length_of_a_loop_is_whole_periods():
    assert [loops.loop_seconds(s, 5.0) for s in (0.1, 5.0, 7.4, 8.0)] == [5.0, 5.0, 5.0, 10.0]


def test_arguments():
    volume = np.zeros((3, 1, 1, 2), np.complex64)
    for call, message in (
        (lambda: loops.close(volume, 8, -1.0), "strength of 0 or more"),
        (lambda: loops.close(volume, 3, 1.0), "terms"),
        (lambda: loops.loop_error(np.zeros((1, 1, 1, 2))), "two frames"),
        (lambda: loops.loop_error(np.zeros((3, 1, 1, 2)), "both"), "'both'"),
    ):
        with pytest.raises(ArgumentError, match=message):
            call()
