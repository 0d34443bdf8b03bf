"""Guidance: values that are not finite, dtypes, one compilation, bounded memory, other networks, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rahf.diffusion import schedules
from rahf.diffusion.sample import GuidanceOptions, denoisers, universal_guidance
from tests.helpers.guidance_maker import ALPHAS_CUMPROD, ALWAYS, gaussian, one_step, quadratic, start


@pytest.mark.parametrize("backward", [0, 2])
def test_a_sample_that_is_not_finite_goes_on_alone(backward):
    schedule = schedules.ddim(ALPHAS_CUMPROD, 8)
    options = GuidanceOptions(scale=0.3, backward_steps=backward, **ALWAYS)

    def broken(x0):  # the energy of sample 1 is NaN; that of sample 2 is not, but its gradient is (a root at 0)
        return quadratic(x0).at[1].add(jnp.nan).at[2].add(jnp.sqrt(0.0 * x0[2, 0]))

    run = lambda energy: universal_guidance.sample(gaussian(), schedule, start(4), energy=energy, options=options)  # noqa: E731
    sampled, sound, plain = run(broken), run(quadratic), run(None)
    assert np.isfinite(sampled.sample).all()
    assert sampled.trace.guarded_steps.tolist() == [0, 8, 8, 0]
    np.testing.assert_allclose(sampled.sample[jnp.array([0, 3])], sound.sample[jnp.array([0, 3])], atol=1e-6)
    np.testing.assert_allclose(sampled.sample[jnp.array([1, 2])], plain.sample[jnp.array([1, 2])], atol=1e-6)


def test_flat_energy_does_nothing_and_is_no_failure():
    schedule = schedules.ddim(ALPHAS_CUMPROD, 5)
    flat = lambda x0: jnp.ones(len(x0))  # noqa: E731
    options = GuidanceOptions(scale=0.3, **ALWAYS)
    sampled = universal_guidance.sample(gaussian(), schedule, start(), energy=flat, options=options)
    plain = universal_guidance.sample(gaussian(), schedule, start())
    np.testing.assert_allclose(sampled.sample, plain.sample, atol=1e-6)
    assert not sampled.trace.guarded.any() and np.isfinite(sampled.sample).all()


def test_energies_stay_float32_under_a_bfloat16_denoiser():
    seen = {}

    def network(z, t, cond):
        seen["denoiser"] = z.dtype
        return gaussian()(z, t, cond)

    def energy(x0):
        seen["energy"] = x0.dtype
        return quadratic(x0).astype(jnp.bfloat16)

    options = GuidanceOptions(scale=0.3, backward_steps=1)
    sampled = universal_guidance.sample(
        network,
        schedules.ddim(ALPHAS_CUMPROD, 6),
        start().astype(jnp.bfloat16),
        energy=energy,
        decode=lambda x0: x0.astype(jnp.bfloat16),
        options=options,
    )
    assert seen == {"denoiser": jnp.bfloat16, "energy": jnp.float32}
    assert {x.dtype for x in (sampled.sample, sampled.energy, *sampled.trace[3:6])} == {jnp.dtype("float32")}
    exact = universal_guidance.sample(
        gaussian(), schedules.ddim(ALPHAS_CUMPROD, 6), start(), energy=quadratic, options=options
    )
    np.testing.assert_allclose(sampled.sample, exact.sample, atol=0.2)


def test_the_trajectory_is_one_scan():
    def scans(jaxpr):
        count = 0
        for equation in jaxpr.eqns:
            count += equation.primitive.name == "scan"
            for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
                inner = getattr(inner, "jaxpr", inner)
                count += scans(inner) if hasattr(inner, "eqns") else 0
        return count

    options = GuidanceOptions(scale=0.3, recurrences=3, backward_steps=2)
    run = lambda steps: jax.make_jaxpr(  # noqa: E731
        lambda key: universal_guidance.sample(
            gaussian(), schedules.ddpm(ALPHAS_CUMPROD, steps), start(), energy=quadratic, options=options, key=key
        )
    )(jax.random.key(0))
    assert scans(run(5).jaxpr) == 1
    assert str(run(5)).count("\n") == str(run(9)).count("\n")  # the program does not grow with the steps


def test_keys_decide_and_seeds_can_be_mapped():
    schedule = schedules.ddpm(ALPHAS_CUMPROD, 6)
    options = GuidanceOptions(scale=0.3, recurrences=2)

    @jax.jit
    def run(key):
        first = universal_guidance.noise(key, 2, (4,))
        return universal_guidance.sample(gaussian(), schedule, first, energy=quadratic, options=options, key=key).sample

    keys = jax.random.split(jax.random.key(0), 3)
    mapped = jax.vmap(run)(keys)
    np.testing.assert_array_equal(run(keys[1]), run(keys[1]))
    np.testing.assert_allclose(mapped, jnp.stack([run(key) for key in keys]), atol=1e-5)
    assert np.abs(mapped[0] - mapped[1]).max() > 0.1
    # A sample does not depend on how many others are drawn with it; nor on who they are.
    many = universal_guidance.sample(
        gaussian(), schedule, universal_guidance.noise(keys[0], 5, (4,)), energy=quadratic, options=options, key=keys[0]
    )
    np.testing.assert_allclose(many.sample[:2], mapped[0], atol=1e-5)
    own = jax.random.split(jax.random.key(8), 3)
    together, alone = universal_guidance.noise(own, 3, (4,)), universal_guidance.noise(own[2:], 1, (4,))
    np.testing.assert_array_equal(together[2:], alone)


def test_other_numbers_compile_nothing():
    schedule, count = schedules.ddim(ALPHAS_CUMPROD, 4), []

    @jax.jit
    def run(options):
        count.append(1)
        return universal_guidance.sample(gaussian(), schedule, start(), energy=quadratic, options=options).sample

    samples = [run(GuidanceOptions(scale=scale, max_norm=5.0)) for scale in (0.1, 0.2, 0.4)]
    assert len(count) == 1 and not np.allclose(samples[0], samples[2])
    each = run(GuidanceOptions(scale=jnp.array([0.1, 0.4, 0.2])))  # one per sample
    np.testing.assert_allclose(each[1], samples[2][1], atol=1e-6)


def test_rematerialisation_bounds_memory():
    layers = 12
    weights = jax.random.normal(jax.random.key(0), (layers, 32, 32)) / 6

    def deep(x):
        for weight in weights:
            x = jnp.tanh(x @ weight)
        return x

    schedule = schedules.ddim(ALPHAS_CUMPROD, 30)

    def final(first, remat):  # the gradient of the end of a trajectory in its beginning
        options = GuidanceOptions(scale=0.1, through_denoiser=False, remat=remat, **ALWAYS)
        network = lambda z, t, c: deep(z)  # noqa: E731
        return universal_guidance.sample(
            network, schedule, first, energy=lambda x: deep(x).sum(-1), options=options
        ).energy.sum()

    first = jax.random.normal(jax.random.key(1), (64, 32))
    memory, gradients = {}, {}
    for remat in (True, False):
        compiled = jax.jit(jax.grad(lambda x, remat=remat: final(x, remat))).lower(first).compile()
        memory[remat], gradients[remat] = compiled.memory_analysis().temp_size_in_bytes, compiled(first)
    assert memory[True] < 0.4 * memory[False]
    np.testing.assert_allclose(gradients[True], gradients[False], rtol=1e-3, atol=1e-5)


def test_clean_range():
    row = one_step(0.5, 1.0)._replace(direction=np.float32([0.0]))
    options = GuidanceOptions(clean_range=(-0.4, 0.6))
    sampled = universal_guidance.sample(gaussian(), row, 3 * start(), options=options).sample
    free = universal_guidance.sample(gaussian(), row, 3 * start()).sample
    np.testing.assert_allclose(sampled, np.clip(free, -0.4, 0.6), atol=1e-6)
    np.testing.assert_allclose(universal_guidance.unit_pixels(jnp.array([-2.0, -1, 0, 0.5, 3])), [0, 0, 0.5, 0.75, 1])


def test_classifier_free_guidance():
    cond = (jnp.ones((2, 1)), jnp.zeros((2, 1)))
    run = denoisers.classifier_free(lambda z, t, c: z + t[:, None] + 10 * c, 3.0)
    z, t = jnp.ones((2, 4)), jnp.array([1, 2])
    np.testing.assert_allclose(run(z, t, cond), jnp.tile(jnp.array([[2.0], [3.0]]), (1, 4)) + 30)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_networks_that_predict_something_else(prediction_type):
    x0, n = (jax.random.normal(jax.random.key(i), (2, 3, 3, 1)) for i in range(2))
    t = jnp.array([100, 700])
    a = jnp.asarray(ALPHAS_CUMPROD, jnp.float32)[t][:, None, None, None]
    z = schedules.add_noise(x0, n, a)
    output = {"epsilon": n, "v_prediction": jnp.sqrt(a) * n - jnp.sqrt(1 - a) * x0, "sample": x0}[prediction_type]
    network = lambda z, t, c: output  # noqa: E731
    eps = denoisers.epsilon(network, ALPHAS_CUMPROD, prediction_type)(z, t, None)
    np.testing.assert_allclose(eps, n, atol=2e-5)
    former = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}[prediction_type]
    with pytest.warns(DeprecationWarning, match=f"'{former}' is now called '{prediction_type}'"):
        same = denoisers.epsilon(network, ALPHAS_CUMPROD, former)(z, t, None)
    np.testing.assert_array_equal(same, eps)
    with pytest.raises(ValueError, match="expected 'epsilon', 'v_prediction' or 'sample', found 'noise'"):
        denoisers.epsilon(network, ALPHAS_CUMPROD, "noise")


def test_bad_input():
    schedule = schedules.ddpm(ALPHAS_CUMPROD, 3)
    with pytest.raises(ValueError, match=r"key: this schedule .* draw noise; give jax.random.key"):
        universal_guidance.sample(gaussian(), schedule, start())
    with pytest.raises(ValueError, match="key: expected jax.random.key"):
        universal_guidance.sample(gaussian(), schedule, start(), key=jnp.zeros(3))
    with pytest.raises(ValueError, match=r"one key, or 3, one per sample; found shape \(2,\)"):
        universal_guidance.sample(gaussian(), schedule, start(), key=jax.random.split(jax.random.key(0)))
    plain = schedules.ddim(ALPHAS_CUMPROD, 3)
    with pytest.raises(ValueError, match=r"energy: expected one number per sample, shape \(3,\), found \(\)"):
        universal_guidance.sample(gaussian(), plain, start(), energy=lambda x: x.sum())
    for options, message in (
        (dict(scale=-1), "scale: expected a finite number of at least 0, found -1"),
        (dict(scale=float("nan")), "scale: expected"),
        (dict(normalise="l2"), "normalise: expected 'none', 'unit' or 'eps', found 'l2'"),
        (dict(recurrences=0), "recurrences: expected a whole number of at least 1, found 0"),
        (dict(backward_steps=1.5), "backward_steps: expected a whole number"),
        (dict(window=(0.5, 0.2)), "window: expected"),
        (dict(window=(0.5, 1.2)), "window: expected shares of signal"),
        (dict(clean_range=(1, -1)), "clean_range: expected"),
    ):
        with pytest.raises(ValueError, match=message):
            GuidanceOptions(**options)
