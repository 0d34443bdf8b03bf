"""EDICT: exact inverses, the table of precisions of the specification, and gradients with flat memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rahf.config import SchedulerConfig, UNetConfig
from rahf.core.errors import ArgumentError
from rahf.diffusion.latents import edict, inversion
from rahf.diffusion.networks.unet import Conditions, UNet2DConditionModel
from rahf.nn import functional

SD1 = SchedulerConfig(steps_offset=0)
WIDTH, STEPS = 16, 50


def toy(weights, z, t):
    """The specification's network: tanh(z W + t / 1000)."""
    return jnp.tanh(z @ weights.astype(z.dtype) + t[:, None].astype(z.dtype) / 1000)


def problem(dtype, batch=4):
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((WIDTH, WIDTH)) / WIDTH**0.5
    return jnp.asarray(weights, dtype), jnp.asarray(rng.standard_normal((batch, WIDTH)), dtype)


def round_trip(dtype, p=edict.P, leapfrog=True):
    """Largest error of the inverse, and final difference of the pair."""
    plan = edict.coefficients(SD1, STEPS, leapfrog)
    weights, z = problem(dtype)
    final = edict.run(toy, plan, weights, edict.Pair(z, z), p)
    undo = lambda pair, row: (edict.inverse_step(toy, weights, row, pair, p), None)
    back = jax.lax.scan(undo, final, edict._rows(plan, dtype), reverse=True)[0]
    errors = [np.abs(np.asarray(part, np.float64) - np.asarray(z, np.float64)).max() for part in back]
    return max(errors), np.abs(np.asarray(final.x - final.y, np.float64)).max()


def test_precisions_of_the_specification():
    """4.1: float64 7.6e-13, float32 3.8e-4, float16 not invertible; a larger p is more exact."""
    with jax.enable_x64(True):
        error, difference = round_trip(jnp.float64)
        assert error < 1e-11 and difference < 2e-2
        assert round_trip(jnp.float64, leapfrog=False)[1] > difference
        by_p = [round_trip(jnp.float32, p)[0] for p in (0.90, 0.93, 0.97)]
        assert 1e-3 < by_p[0] < 1e-1 and 1e-4 < by_p[1] < 1e-2 and by_p[2] < 1e-4
        assert not round_trip(jnp.float16)[0] < 0.5


def test_one_step_by_hand():
    """a = 2, b = 1, p = 0.75, eps = 1: x = 2·1+1 = 3, y = 3; the pair stays (3, 3). From (1, 3): (3, 7) → (4, 6.25)."""
    row = edict.Coefficients(jnp.int32(5), 2.0, 1.0, jnp.bool_(False))
    one = lambda arguments, z, t: jnp.ones_like(z)
    pair = edict.step(one, None, row, edict.Pair(jnp.full((1, 2), 1.0), jnp.full((1, 2), 3.0)), 0.75)
    np.testing.assert_allclose(pair.x, 0.75 * 3 + 0.25 * 7)
    np.testing.assert_allclose(pair.y, 0.75 * 7 + 0.25 * 4.0)
    back = edict.inverse_step(one, None, row, pair, 0.75)
    np.testing.assert_allclose([back.x[0, 0], back.y[0, 0]], [1, 3], rtol=1e-6)


def test_coefficients_are_those_of_ddim():
    plan = edict.coefficients(SD1, 4)
    abar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    np.testing.assert_array_equal(plan.timestep, [750, 500, 250, 0])
    np.testing.assert_allclose(plan.a[:3], np.sqrt(abar[[500, 250, 0]] / abar[[750, 500, 250]]))
    assert plan.a[3] == 1 and plan.b[3] == pytest.approx(0, abs=1e-12)  # set_alpha_to_one is False
    assert list(plan.swap) == [False, True, False, True]
    assert not edict.coefficients(SD1, 4, leapfrog=False).swap.any()
    clean = edict.coefficients(dataclasses.replace(SD1, set_alpha_to_one=True), 4)
    assert clean.a[3] > 1


@pytest.mark.parametrize("leapfrog", [True, False])
def test_the_gradient_is_that_of_the_plain_scan(leapfrog):
    with jax.enable_x64(True):
        plan = edict.coefficients(SD1, 20, leapfrog)
        weights, z = problem(jnp.float64)
        arguments = {"weights": weights, "ids": jnp.arange(3)}  # whole numbers have no gradient
        network = lambda arguments, z, t: toy(arguments["weights"], z, t)

        def loss(final):
            return jnp.sum(jnp.sin(final.x)) + jnp.sum(final.y**2)

        def exact(weights, z):
            return loss(edict.run(network, plan, arguments | {"weights": weights}, edict.Pair(z, z), edict.P))

        def flat(wrt):
            return lambda weights, z: loss(
                edict.denoise(network, plan, arguments | {"weights": weights}, edict.Pair(z, z), wrt_arguments=wrt)
            )

        expected = jax.grad(exact, (0, 1))(weights, z)
        ours = jax.grad(flat(True), (0, 1))(weights, z)
        np.testing.assert_allclose(ours[0], expected[0], rtol=1e-5)
        np.testing.assert_allclose(ours[1], expected[1], rtol=1e-5)
        frozen = jax.grad(flat(False), (0, 1))(weights, z)
        assert not np.asarray(frozen[0]).any()
        np.testing.assert_allclose(frozen[1], expected[1], rtol=1e-5)


def test_memory_does_not_grow_with_the_steps():
    weights, z = problem(jnp.float32, batch=64)

    def temporary(steps, chain):
        plan = edict.coefficients(SD1, steps)
        loss = lambda z: jnp.sum(chain(toy, plan, weights, edict.Pair(z, z), edict.P).x ** 2)
        return jax.jit(jax.grad(loss)).lower(z).compile().memory_analysis().temp_size_in_bytes

    assert temporary(50, edict.denoise) <= 1.05 * temporary(10, edict.denoise)
    assert temporary(50, edict.run) > 2 * temporary(10, edict.run)


def test_memory_of_ddim_grows_by_the_latents_only():
    weights, z = problem(jnp.float32, batch=64)

    def temporary(steps):
        plan = edict.coefficients(SD1, steps)
        loss = lambda z: jnp.sum(inversion.sample(toy, plan, weights, z) ** 2)
        return jax.jit(jax.grad(loss)).lower(z).compile().memory_analysis().temp_size_in_bytes

    grown, latents = temporary(50) - temporary(10), 40 * z.size * 4
    assert 0 < grown <= 1.05 * latents + 4096


def test_the_inverse_leads_back():
    plan = edict.coefficients(SD1, 10)
    weights, z = problem(jnp.float32)
    final = edict.denoise(toy, plan, weights, edict.Pair(z, z))
    back = edict.invert(toy, plan, weights, final)
    np.testing.assert_allclose(back.x, z, atol=1e-4)
    np.testing.assert_allclose(back.y, z, atol=1e-4)


@pytest.mark.parametrize("dtype, p, message", [(jnp.bfloat16, 0.93, "float32 or float64"), (jnp.float32, 0.0, "p:")])
def test_refusals(dtype, p, message):
    weights, z = problem(dtype)
    with pytest.raises(ArgumentError, match=message):
        edict.denoise(toy, edict.coefficients(SD1, 5), weights, edict.Pair(z, z), p)


@pytest.mark.slow
def test_memory_at_the_size_of_stable_diffusion():
    """Compiled memory of the gradient through 10 and 50 steps, and of one step of the network; nothing is allocated."""
    config = UNetConfig()
    graphdef, params = functional.abstract(lambda: UNet2DConditionModel(config, dtype=jnp.dtype("float32")))
    text = jax.ShapeDtypeStruct((1, 77, config.cross_attention_dim), jnp.float32)
    z = jax.ShapeDtypeStruct((1, 64, 64, 4), jnp.float32)

    def network(arguments, z, t):
        params, text = arguments
        return functional.merge(graphdef, params)(z, t, Conditions(text))

    def temporary(loss):
        return jax.jit(jax.grad(loss, 2)).lower(params, text, z).compile().memory_analysis().temp_size_in_bytes

    def chain(steps):
        plan = edict.coefficients(SD1, steps)
        return lambda params, text, z: (edict.denoise(network, plan, (params, text), edict.Pair(z, z)).x ** 2).sum()

    def plain(steps):
        plan = edict.coefficients(SD1, steps)
        return lambda params, text, z: (inversion.sample(network, plan, (params, text), z) ** 2).sum()

    one = temporary(lambda params, text, z: (network((params, text), z, jnp.full(1, 7)) ** 2).sum())
    ten, fifty = temporary(chain(10)), temporary(chain(50))
    ddim = [temporary(plain(steps)) for steps in (10, 50)]
    print(
        f"temporary memory: one step {one / 2**20:.0f} MiB, 10 steps {ten / 2**20:.0f}, 50 steps {fifty / 2**20:.0f}; "
        f"DDIM with steps computed again, 10 steps {ddim[0] / 2**20:.1f}, 50 steps {ddim[1] / 2**20:.1f}"
    )
    assert ddim[1] <= 1.05 * one
    assert ddim[1] - ddim[0] <= 1.05 * 40 * z.size * 4  # the latents of 40 steps more
    assert fifty <= 1.05 * ten
    assert fifty <= 1.3 * one
