"""Policy gradient: densities against SciPy, ratios, advantages of pictures and places, and where gradients lead."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rahf.config import DdpoConfig
from rahf.core.errors import ArgumentError
from rahf.diffusion import schedulers
from rahf.diffusion.feedback import ddpo
from rahf.diffusion.feedback.chain import Base
from tests.helpers import toy_denoiser as toy

OPTIONS = DdpoConfig()


@pytest.fixture(scope="module")
def chain():
    return toy.chain(eta=1.0)


@pytest.fixture(scope="module")
def trajectory(chain):
    return ddpo.sample(chain, toy.params(), toy.conditions(), toy.keys(), toy.SHAPE)


def loss(chain, params, trajectory, advantages, options=OPTIONS, **more):
    return ddpo.loss(chain, params, toy.conditions(), trajectory, jnp.asarray(advantages), options, **more)


def moved(amount):
    params = toy.params()
    return params | {"unet": {"kernel": params["unet"]["kernel"] + amount}}


def test_log_prob_is_scipys():
    after, mean = np.random.default_rng(0).normal(size=(2, 3, 2, 2, 4)).astype(np.float32)
    expected = stats.norm.logpdf(after, mean, 0.3).sum(-1)
    after, mean = jnp.asarray(after), jnp.asarray(mean)
    np.testing.assert_allclose(ddpo.log_prob(after, mean, jnp.float32(0.3)), expected, rtol=1e-5)
    np.testing.assert_array_equal(ddpo.log_prob(after, mean, jnp.float32(0)), np.zeros((3, 2, 2)))
    gradient = jax.grad(lambda mean: ddpo.log_prob(after, mean, jnp.float32(0)).sum())(mean)
    np.testing.assert_array_equal(gradient, 0)


def test_a_trajectory(chain, trajectory):
    """Its densities by SciPy from the steps of the scheduler; its end is what the chain draws."""
    state = chain.start(toy.keys(), toy.SHAPE)
    for number in range(4):
        row = chain.row(number)
        x0, eps = chain.estimate(toy.params(), toy.conditions(), row, state.latents)
        mean, _ = schedulers.advance(row.factors, state.latents, x0, eps, state.history)
        np.testing.assert_allclose(trajectory.latents[number], state.latents, atol=1e-5)
        state = chain.advance(row, state, x0, eps, toy.keys())
        std_dev = float(row.factors.of_noise)
        if number == 3:  # the last step draws no noise
            np.testing.assert_array_equal(state.latents, mean)
            np.testing.assert_array_equal(trajectory.log_probs[3], 0)
            break
        expected = stats.norm.logpdf(state.latents, mean, std_dev).sum(-1)
        np.testing.assert_allclose(trajectory.log_probs[number], expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(trajectory.latents[4], state.latents, atol=1e-5)


@pytest.mark.parametrize("places", [False, True])
def test_the_first_ratio_is_one(chain, trajectory, places):
    advantages = np.float32([1, -2, 0.5])
    shaped = np.tile(advantages[:, None, None], (1, 2, 3)) if places else advantages
    value, measured = loss(chain, toy.params(), trajectory, shaped)
    np.testing.assert_allclose(measured.ratio, 1, atol=1e-6)
    np.testing.assert_allclose(value, -advantages.mean(), atol=1e-5)
    assert float(measured.kl) < 1e-10 and float(measured.pull) == 0
    exact, measured = loss(chain, toy.params(), trajectory._replace(log_probs=None), shaped)
    assert float(measured.ratio) == 1 and float(measured.clipped) == 0
    np.testing.assert_allclose(exact, -advantages.mean(), atol=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_gradient_leads_to_better_pictures(chain, trajectory, sign):
    """A step down the gradient makes a praised way likelier, and a blamed one less likely."""
    advantages = np.float32([0, sign, 0])
    gradient = jax.grad(lambda params: loss(chain, params, trajectory, advantages)[0])(toy.params())
    params = jax.tree.map(lambda p, g: p - 1e-3 * g, toy.params(), gradient)
    before, after = (log_probs(chain, p, trajectory)[:, 1].sum() for p in (toy.params(), params))
    assert (after > before) == (sign > 0)
    assert not np.asarray(gradient["vae"]["kernel"]).any()


def log_probs(chain, params, trajectory):
    """Densities of the steps that draw noise under other parameters, float64 [N-1,B,h,w]."""
    values = []
    for number in range(chain.length - 1):
        row, before = chain.row(number), trajectory.latents[number]
        x0, eps = chain.estimate(params, toy.conditions(), row, before)
        mean, _ = schedulers.advance(row.factors, before, x0, eps, before[None][:0])
        values.append(stats.norm.logpdf(trajectory.latents[number + 1], mean, float(row.factors.of_noise)).sum(-1))
    return np.stack(values)


def test_ratios_are_clipped(chain, trajectory):
    """By hand from SciPy's densities, for pictures and for places; a clipped praise has no gradient."""
    params, options = moved(0.05), DdpoConfig(clip_range=0.01)
    change = (log_probs(chain, params, trajectory) - np.asarray(trajectory.log_probs[:3], np.float64)) / 4
    advantages = np.float32([1, -2, 0.5])
    maps = np.random.default_rng(1).uniform(-1, 1, size=(3, 2, 3)).astype(np.float32)
    for shaped, exponent in ((advantages, change.mean((2, 3))), (maps, change)):
        ratio = np.exp(exponent)
        expected = np.maximum(-shaped * ratio, -shaped * np.clip(ratio, 0.99, 1.01)).mean()
        value, measured = loss(chain, params, trajectory, shaped, options)
        np.testing.assert_allclose(value, expected, rtol=2e-3)
        np.testing.assert_allclose(measured.ratio, ratio.mean(), rtol=1e-3)
        np.testing.assert_allclose(measured.clipped, ((ratio < 0.99) | (ratio > 1.01)).mean(), atol=1e-6)
        assert float(measured.clipped) > 0


def test_clipped_ratios_have_no_gradient():
    """Of one step that draws: praise of what has become likelier, and blame of what has become less likely."""
    chain, params = toy.chain(2, eta=1.0), moved(0.3)
    trajectory = ddpo.sample(chain, toy.params(), toy.conditions(), toy.keys(), toy.SHAPE)
    change = (log_probs(chain, params, trajectory)[0] - np.asarray(trajectory.log_probs[0])) / 4
    advantages = np.where(change > 0.02, 1, np.where(change < -0.02, -1, 0)).astype(np.float32)
    assert (advantages > 0).any() and (advantages < 0).any()
    for clip_range, learns in ((0.01, False), (0.99, True)):
        options = DdpoConfig(clip_range=clip_range)
        gradient = jax.grad(lambda p: loss(chain, p, trajectory, advantages, options)[0])(params)
        assert np.asarray(gradient["unet"]["kernel"]).any() == learns


def test_pull_to_the_base_model(chain, trajectory):
    """The divergence of normal distributions by hand; the loss has it with its weight."""
    params, base = moved(0.1), Base(toy.params(), toy.conditions())
    plain, _ = loss(chain, params, trajectory, np.ones(3, np.float32))
    value, measured = loss(chain, params, trajectory, np.ones(3, np.float32), base=base, pull_weight=2.0)
    divergences = []
    for number in range(3):
        row, before = chain.row(number), trajectory.latents[number]
        means = []
        for p in (params, toy.params()):
            x0, eps = chain.estimate(p, toy.conditions(), row, before)
            means.append(schedulers.advance(row.factors, before, x0, eps, before[None][:0])[0])
        divergences.append(np.square((means[0] - means[1]) / row.factors.of_noise).mean() / 2)
    np.testing.assert_allclose(measured.pull, np.mean(divergences), rtol=1e-4)
    np.testing.assert_allclose(value - plain, 2 * np.mean(divergences), rtol=1e-3)


def test_advantages_per_prompt():
    """Prompt 0 has rewards 1 and 3, prompt 2 equal ones; the only picture of prompt 1 is compared with all."""
    rewards, prompts = jnp.float32([1, 3, 10, 5, 5]), jnp.int32([0, 0, 1, 2, 2])
    values = np.asarray(ddpo.advantages(rewards, prompts, OPTIONS))
    np.testing.assert_allclose(values[[0, 1, 3, 4]], [-1, 1, 0, 0], atol=1e-5)
    np.testing.assert_allclose(values[2], (10 - rewards.mean()) / rewards.std(), rtol=1e-5)
    close = ddpo.advantages(jnp.float32([1.1338, 1.13381]), jnp.int32([0, 0]), OPTIONS)
    np.testing.assert_allclose(close, [-1, 1], atol=2e-3)  # the deviation is 5e-6
    assert abs(float(close.sum())) < 1e-6
    many = jnp.float32([*[0] * 63, 1000])
    clamped = np.asarray(ddpo.advantages(many, jnp.zeros(64, jnp.int32), OPTIONS))
    assert clamped.max() == 5
    together = ddpo.advantages(rewards, prompts, dataclasses.replace(OPTIONS, least_of_prompt=6))
    np.testing.assert_allclose(together, (rewards - rewards.mean()) / rewards.std(), rtol=1e-5)


def test_advantages_of_places():
    """Blame where the heatmap is high, praise where it is low; the mean over places is the picture's."""
    heatmaps = np.zeros((3, 4, 6), np.float32)
    heatmaps[:2, :2, :2] = 0.6  # the first cell of 2 x 3
    heatmaps = jnp.asarray(heatmaps)
    values = np.asarray(ddpo.place_advantages(jnp.float32([-1, 1, -3]), heatmaps, (2, 3), 1.0))
    np.testing.assert_allclose(values.mean((1, 2)), [-1, 1, -3], rtol=1e-5)
    assert values[0, 0, 0] == values[0].min() and abs(values[0, 1, 2]) < 1e-6
    assert values[1, 0, 0] == values[1].min() == 0 and values[1, 1, 2] > 1
    np.testing.assert_allclose(values[2], -3, rtol=1e-6)  # a heatmap without mass
    half = np.asarray(ddpo.place_advantages(jnp.float32([-1, 1, -3]), heatmaps, (2, 3), 0.5))
    np.testing.assert_allclose(half, 0.5 * values + 0.5 * np.float32([-1, 1, -3])[:, None, None], rtol=1e-5)


@pytest.mark.parametrize("changes, message", [
    (dict(clip_range=0.0), "ddpo.clip_range: expected above 0 and below 1, found 0.0"),
    (dict(advantage_max=0.0), "ddpo.advantage_max"),
    (dict(place_share=1.5), "ddpo.place_share: expected 0 to 1, found 1.5"),
    (dict(least_of_prompt=1), "ddpo.least_of_prompt"),
])  # fmt: skip
def test_bad_options(changes, message):
    with pytest.raises(ArgumentError, match=message):
        ddpo.check(DdpoConfig(**changes))


def test_bad_steps_and_shapes(chain, trajectory):
    with pytest.raises(ArgumentError, match="ddim without noise"):
        ddpo.sample(toy.chain(), toy.params(), toy.conditions(), toy.keys(), toy.SHAPE)
    euler = toy.chain(scheduler=dataclasses.replace(toy.SCHEDULER, kind="euler"))
    with pytest.raises(ArgumentError, match="found euler"):
        ddpo.sample(euler, toy.params(), toy.conditions(), toy.keys(), toy.SHAPE)
    with pytest.raises(ArgumentError, match=r"one per picture or place, \(3, 2, 3\), found \(3, 2\)"):
        loss(chain, toy.params(), trajectory, np.zeros((3, 2), np.float32))
