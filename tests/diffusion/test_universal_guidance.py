"""Universal guidance against closed forms: Gaussian data, whose best denoiser is known, and quadratic
energies."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rahf.diffusion import schedules
from rahf.diffusion.sample import GuidanceOptions, displace, universal_guidance
from tests.helpers.guidance_maker import ALPHAS_CUMPROD, ALWAYS, MEAN, TARGET, gaussian, one_step, quadratic, start


@pytest.mark.parametrize("through", [True, False])
@pytest.mark.parametrize("normalise", ["none", "unit", "eps"])
def test_one_forward_step_has_the_closed_form(through, normalise):
    # eps = sqrt(1-a) (z - sqrt(a) m); x0 = sqrt(a) z + (1-a) m; dE/dz = sqrt(a) (x0 - y), or (x0 - y) / sqrt(a) with
    # eps held constant.
    t = 400
    a, b = float(ALPHAS_CUMPROD[t]), 0.5
    z = np.asarray(start(), np.float64)
    m, y = np.asarray(MEAN, np.float64), np.asarray(TARGET, np.float64)
    eps = (1 - a) ** 0.5 * (z - a**0.5 * m)
    x0 = a**0.5 * z + (1 - a) * m
    g = (x0 - y) * (a**0.5 if through else a**-0.5)
    length = np.linalg.norm(g, axis=1, keepdims=True)
    factor = {"none": 1.0, "unit": 1 / length, "eps": np.linalg.norm(eps, axis=1, keepdims=True) / length}[normalise]
    guided = eps + 0.7 * (1 - a) ** 0.5 * g * factor
    expected = b**0.5 * (z - (1 - a) ** 0.5 * guided) / a**0.5 + (1 - b) ** 0.5 * guided
    options = GuidanceOptions(scale=0.7, normalise=normalise, through_denoiser=through, **ALWAYS)
    row = one_step(a)._replace(timesteps=np.int32([t]))
    sampled = universal_guidance.sample(gaussian(), row, start(), energy=quadratic, options=options)
    np.testing.assert_allclose(sampled.sample, expected, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(sampled.trace.energy[0], 0.5 * ((x0 - y) ** 2).sum(1), rtol=1e-5)
    np.testing.assert_allclose(sampled.trace.gradient_norm[0], length[:, 0], rtol=1e-5)
    np.testing.assert_allclose(sampled.energy, 0.5 * ((expected - y) ** 2).sum(1), rtol=1e-4)
    assert sampled.trace.guarded_steps.tolist() == [0, 0, 0]


def test_longest_gradient():
    options = GuidanceOptions(scale=0.7, normalise="none", **ALWAYS)
    run = lambda o: universal_guidance.sample(gaussian(), one_step(0.4, 0.7), start(), energy=quadratic, options=o)  # noqa: E731
    plain = run(dataclasses.replace(options, scale=0.0)).sample
    free, short = run(options), run(dataclasses.replace(options, max_norm=0.5))
    np.testing.assert_array_equal(free.trace.gradient_norm, short.trace.gradient_norm)
    shortened = (short.sample - plain) / (free.sample - plain)
    np.testing.assert_allclose(shortened.T, np.tile(0.5 / free.trace.gradient_norm[0], (4, 1)), rtol=1e-3)


def test_after_backward_guidance_the_clean_estimate_is_displaced():
    # Adam's first step has the length of its rate, against the sign of the gradient x0 - y.
    for a in (0.05, 0.5, 0.99):
        z = start()
        t = int(np.argmin(np.abs(ALPHAS_CUMPROD - a)))
        a = float(np.float32(ALPHAS_CUMPROD[t]))
        x0 = a**0.5 * z + (1 - a) * MEAN
        moved = -0.05 * jnp.sign(x0 - TARGET)
        options = GuidanceOptions(scale=0.0, backward_steps=1, backward_rate=0.05, **ALWAYS)
        row = one_step(a, 1.0)._replace(direction=np.float32([0.0]))  # what follows is the clean estimate itself
        sampled = universal_guidance.sample(gaussian(), row, z, energy=quadratic, options=options)
        np.testing.assert_allclose(sampled.sample, x0 + moved, atol=3e-6)
        np.testing.assert_allclose(sampled.trace.displacement[0], 0.05 * 2, rtol=1e-5)


def test_the_shifted_noise_implies_the_displaced_estimate_to_1e_6():
    rng = np.random.default_rng(0)
    z, eps, moved = (jnp.asarray(rng.normal(size=(5, 4)), jnp.float32) for _ in range(3))
    for a in jnp.float32(jnp.array([0.3, 0.7, 0.999])):
        shifted = eps - jnp.sqrt(a / (1 - a)) * moved
        np.testing.assert_allclose(
            schedules.pred_original_sample(z, shifted, a), schedules.pred_original_sample(z, eps, a) + moved, atol=1e-6
        )


def test_backward_guidance_stops_when_the_energy_is_low_enough():
    x0 = jnp.stack([TARGET, TARGET + 1.0, TARGET + 3.0])
    options = GuidanceOptions(backward_steps=20, backward_rate=0.1, backward_tolerance=0.02)
    moved, failed = displace.descend(quadratic, x0, options)
    assert not failed.any()
    np.testing.assert_array_equal(moved[0], 0)  # already there
    assert 0 < float(quadratic(x0 + moved)[1]) < 0.02
    assert float(quadratic(x0 + moved)[2]) > 0.02  # 20 steps of about 0.1 do not lead that far
    assert float(quadratic(x0 + moved)[2]) < float(quadratic(x0)[2])
    alone, _ = displace.descend(quadratic, x0[1:2], options)
    np.testing.assert_allclose(alone[0], moved[1], atol=1e-6)  # a sample does not depend on the others


def test_total_variation_smooths_displacements():
    x = jnp.arange(12.0).reshape(1, 3, 4, 1)
    np.testing.assert_allclose(displace.total_variation(x), [4.0 + 1.0])  # rows differ by 4, columns by 1
    np.testing.assert_allclose(displace.total_variation(jnp.ones((2, 1, 1, 3))), [0, 0])
    rough = jax.random.normal(jax.random.key(0), (1, 6, 6, 1))
    near = lambda x: jnp.square(x - rough).mean((1, 2, 3))  # noqa: E731
    size = {}
    for weight in (0.0, 1.0):
        options = GuidanceOptions(backward_steps=30, backward_rate=0.05, total_variation=weight)
        moved, _ = displace.descend(near, jnp.zeros_like(rough), options)
        size[weight] = float(displace.total_variation(moved)[0])
    assert size[1.0] < 0.5 * size[0.0]


@pytest.mark.parametrize("sampler", [schedules.ddim, schedules.ddpm])
def test_zero_scale_is_the_plain_sampler_bit_for_bit(sampler):
    schedule, key = sampler(ALPHAS_CUMPROD, 12), jax.random.key(3)
    weights = jax.random.normal(jax.random.key(9), (4, 4))

    def network(z, t, cond):
        return jnp.tanh(z @ weights + t[:, None] / 1000)

    def run(energy, **options):
        return universal_guidance.sample(
            network, schedule, start(), energy=energy, options=GuidanceOptions(**options), key=key
        )

    with jax.disable_jit():  # two compiled programs may round a product and a sum as one
        plain = run(None)
        zero = run(quadratic, scale=0.0)
    traced = jax.jit(lambda scale: run(quadratic, scale=scale))(0.0)
    np.testing.assert_array_equal(zero.sample, plain.sample)
    np.testing.assert_allclose(traced.sample, plain.sample, rtol=1e-5, atol=1e-5)
    assert np.abs(run(quadratic, scale=0.1).sample - plain.sample).max() > 0.01
    # And the plain sampler is the textbook's: one step after the other, from x0 and eps.
    z = np.asarray(start(), np.float64)
    if sampler is schedules.ddim:
        for t, a, b in zip(
            schedule.timesteps, schedule.alphas_cumprod.astype(float), schedule.alphas_cumprod_prev.astype(float)
        ):
            eps = np.tanh(z @ np.asarray(weights, float) + t / 1000)
            z = b**0.5 * (z - (1 - a) ** 0.5 * eps) / a**0.5 + (1 - b) ** 0.5 * eps
        np.testing.assert_allclose(plain.sample, z, atol=2e-4)
    assert plain.energy is None and not plain.trace.guided.any() and np.isnan(plain.trace.energy).all()
    inside = (schedule.alphas_cumprod >= 0.1) & (schedule.alphas_cumprod <= 1)
    np.testing.assert_array_equal(zero.trace.guided, inside)
    np.testing.assert_array_equal(np.isfinite(zero.trace.energy).all(1), inside)


def test_plain_sampling_draws_the_data():
    # DDIM's limit maps noise to data without drawing: for N(m, s² I) a straight scaling of each z.
    end = float(ALPHAS_CUMPROD[-1])
    many = start(4000, seed=1)
    sampled = universal_guidance.sample(gaussian(0.5), schedules.ddim(ALPHAS_CUMPROD, 250), many)
    exact = MEAN + 0.5 * (many - end**0.5 * MEAN) / (end * 0.25 + 1 - end) ** 0.5
    np.testing.assert_allclose(sampled.sample, exact, atol=0.05)
    drawn = universal_guidance.sample(gaussian(0.5), schedules.ddpm(ALPHAS_CUMPROD, 250), many, key=jax.random.key(0))
    np.testing.assert_allclose(drawn.sample.mean(0), MEAN, atol=0.03)
    np.testing.assert_allclose(drawn.sample.std(0), 0.5, atol=0.02)


def test_ddpm_draws_the_variance_of_the_posterior():
    # q(z'|z,x0) with beta = 1 - a/b: mean sqrt(b) beta/(1-a) x0 + sqrt(1-beta) (1-b)/(1-a) z, variance
    # beta (1-b)/(1-a) (Ho et al. 2020, equation 7).
    many = jnp.tile(jnp.array([[0.3, -0.2, 1.0, 0.0]]), (20_000, 1))
    for variance in ("small", "large"):
        whole = schedules.ddpm(ALPHAS_CUMPROD, 10, variance)
        row = schedules.Schedule(*(x[4:5] for x in whole))
        a, b = float(row.alphas_cumprod[0]), float(row.alphas_cumprod_prev[0])
        beta = 1 - a / b
        constant = lambda z, t, c: jnp.full_like(z, 0.25)
        sampled = universal_guidance.sample(constant, row, many, key=jax.random.key(5)).sample
        x0 = (np.asarray(many[0]) - (1 - a) ** 0.5 * 0.25) / a**0.5
        mean = b**0.5 * beta / (1 - a) * x0 + (1 - beta) ** 0.5 * (1 - b) / (1 - a) * np.asarray(many[0])
        expected = beta * (1 - b) / (1 - a) if variance == "small" else beta
        np.testing.assert_allclose(sampled.mean(0), mean, atol=0.02)
        np.testing.assert_allclose(sampled.var(0), expected, rtol=0.03)


def test_energy_falls_with_the_scale_and_recurrences():
    schedule, many = schedules.ddim(ALPHAS_CUMPROD, 20), start(512)

    @functools.partial(jax.jit, static_argnums=1)
    def run(scale, recurrences=1):
        options = GuidanceOptions(scale=scale, window=(0.02, 1.0), recurrences=recurrences)
        key = jax.random.key(0)
        return universal_guidance.sample(gaussian(), schedule, many, energy=quadratic, options=options, key=key).energy

    plain, weak, strong = (run(scale) for scale in (0.0, 0.2, 0.5))
    assert (weak < plain).all() and (strong < weak).mean() > 0.9  # a push of fixed length may overshoot
    assert float(strong.mean()) < 0.75 * float(plain.mean())
    # Recurrences mix pushes with the model's own noise: less of each push is left, more of the data's distribution.
    again = float(run(0.2, 3).mean())
    assert float(weak.mean()) + 0.3 < again < float(plain.mean()) - 0.5  # the standard error is about 0.1
    options = GuidanceOptions(scale=0.0, backward_steps=5, backward_rate=0.2, window=(0.02, 1.0))
    backward = universal_guidance.sample(gaussian(), schedule, many, energy=quadratic, options=options)
    assert (backward.energy < plain).all()


def test_recurrence_puts_noise_back():
    # Two visits of one step with eps = 0: z' = sqrt(b/a) z, then z = sqrt(a/b) z' + sqrt(1 - a/b) n, then z' again.
    a, b = 0.4, 0.6
    row = one_step(a, b)
    options = GuidanceOptions(scale=0.0, recurrences=2, **ALWAYS)
    many = jnp.ones((20_000, 4))
    sampled = universal_guidance.sample(
        lambda z, t, c: jnp.zeros_like(z), row, many, energy=quadratic, options=options, key=jax.random.key(1)
    )
    np.testing.assert_allclose(sampled.sample.mean(0), (b / a) ** 0.5, atol=0.02)
    np.testing.assert_allclose(sampled.sample.var(0), b / a * (1 - a / b), rtol=0.03)
    assert sampled.trace.step.tolist() == [0, 0]


def test_window_decides_where_energies_are_asked():
    schedule = schedules.ddim(ALPHAS_CUMPROD, 10)
    inside = (schedule.alphas_cumprod >= 0.2) & (schedule.alphas_cumprod <= 0.8)
    options = GuidanceOptions(scale=0.3, window=(0.2, 0.8), recurrences=2)
    sampled = universal_guidance.sample(
        gaussian(), schedule, start(), energy=quadratic, options=options, key=jax.random.key(0)
    )
    trace = sampled.trace
    assert 0 < inside.sum() < 10
    assert trace.step.tolist() == np.repeat(np.arange(10), np.where(inside, 2, 1)).tolist()
    np.testing.assert_array_equal(trace.guided, inside[trace.step])
    np.testing.assert_array_equal(np.isfinite(trace.energy), np.tile(np.array(trace.guided)[:, None], (1, 3)))
    np.testing.assert_array_equal(trace.gradient_norm > 0, np.isfinite(trace.energy))
    nowhere = GuidanceOptions(scale=0.3, window=(0.9999, 1.0))
    quiet = universal_guidance.sample(gaussian(), schedule, start(), energy=quadratic, options=nowhere)
    np.testing.assert_array_equal(quiet.sample, universal_guidance.sample(gaussian(), schedule, start()).sample)
