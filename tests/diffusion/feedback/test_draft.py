"""Direct reward fine-tuning: its gradients are those of samplings written by hand, for every rule."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rahf.config import DraftConfig
from rahf.core.batch import SCORES
from rahf.core.errors import ArgumentError
from rahf.diffusion.feedback import draft
from rahf.diffusion.feedback.chain import Base
from rahf.diffusion.feedback.rewards import Reward, of_energy, of_reward, total
from rahf.nn import energy
from rahf.training import trainable
from tests.helpers import toy_denoiser as toy


def redness(pixels):
    return pixels[..., 0].mean((1, 2))


RED = of_reward(redness)


def merged(adapters):
    return trainable.merged(toy.params(), {"scale": jnp.float32(0.7), "adapters": adapters})


def gradient_of(options, key=None, chain=None):
    """Gradient of the loss in the adapters, and the pictures."""

    def objective(adapters):
        arguments = (toy.conditions(), toy.keys(), toy.SHAPE, [RED], options, key)
        return draft.loss(chain or toy.chain(), merged(adapters), *arguments)

    (value, judged), gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))(toy.adapters())
    return float(value), judged, gradient


def by_hand(k, chain=None, stop=None):
    """The same by a loop, without scan or checkpoints; `stop`: the clean estimate of this step is judged."""
    chain = chain or toy.chain()

    def objective(adapters):
        params, state = merged(adapters), chain.start(toy.keys(), toy.SHAPE)
        for number in range(chain.length):
            x0, eps = chain.estimate(params, toy.conditions(), chain.row(number), state.latents)
            if number == stop:
                return -redness(chain.decode(params, x0)).mean()
            state = chain.advance(chain.row(number), state, x0, eps, toy.keys())
            if number < (stop if stop is not None else chain.length - k):
                state = jax.lax.stop_gradient(state)
        return -redness(chain.decode(params, state.latents)).mean()

    return jax.value_and_grad(objective)(toy.adapters())


def close(gradient, expected):
    for path, leaf in jax.tree.leaves_with_path(expected):
        assert np.abs(leaf).max() > 0, path
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=1e-7), gradient, expected)


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("kind, eta", [("ddim", 0.0), ("ddim", 1.0), ("dpmsolver++", 0.0)])
def test_draft_is_the_loop_by_hand(k, kind, eta):
    """K = 1, and all steps, which is full back-propagation."""
    chain = toy.chain(eta=eta, scheduler=dataclasses.replace(toy.SCHEDULER, kind=kind))
    value, judged, gradient = gradient_of(DraftConfig(k=k), chain=chain)
    expected, by_loop = by_hand(k, chain)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    close(gradient, by_loop)
    np.testing.assert_allclose(judged.reward, redness(judged.images), rtol=1e-5)


def test_fewer_steps_give_another_gradient():
    one, all_steps = (by_hand(k)[1]["unet"]["kernel"]["a"] for k in (1, 4))
    assert np.abs(one - all_steps).max() > 1e-3 * np.abs(all_steps).max()


def test_alignprop_draws_the_number_of_steps():
    """Each drawn number has the gradient of DRaFT with it; all are drawn."""
    options, drawn = DraftConfig(rule="alignprop", k=3), set()
    for seed in range(12):
        key = jax.random.key(seed)
        number = int(jax.random.randint(key, (), 1, 4))
        if number not in drawn:
            drawn.add(number)
            close(gradient_of(options, key)[2], by_hand(number)[1])
    assert drawn == {1, 2, 3}


def test_refl_judges_the_clean_estimate_of_a_drawn_step():
    options = DraftConfig(rule="refl", stop_range=(1, 2))
    for seed in range(3):
        key = jax.random.key(seed)
        value, _, gradient = gradient_of(options, key)
        expected, by_loop = by_hand(0, stop=int(jax.random.randint(key, (), 1, 3)))
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        close(gradient, by_loop)


def test_a_margin_is_a_hinge():
    """Rewards above the margin have no gradient; the loss is scaled."""
    rewards = np.asarray(gradient_of(DraftConfig())[1].reward)
    margin = float(np.sort(rewards)[1])
    value, _, _ = gradient_of(DraftConfig(margin=margin, loss_scale=1e-3))
    np.testing.assert_allclose(value, 1e-3 * np.maximum(margin - rewards, 0).mean(), rtol=1e-4)
    _, _, gradient = gradient_of(DraftConfig(margin=float(rewards.min()) - 0.1))
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))


def test_the_autoencoder_never_learns():
    def objective(params):
        return draft.loss(toy.chain(), params, toy.conditions(), toy.keys(), toy.SHAPE, [RED], DraftConfig(k=2))[0]

    gradient = jax.grad(objective)(toy.params())
    assert np.asarray(gradient["unet"]["kernel"]).any() and not np.asarray(gradient["vae"]["kernel"]).any()


def test_pull_to_the_base_model():
    """0 at the base model; else the mean squared difference of the noise, of one step by hand."""
    base = Base(toy.params(), toy.conditions())
    arguments = (toy.conditions(), toy.keys(), toy.SHAPE, [RED], DraftConfig(k=1), None, base, 10.0)
    same = draft.loss(toy.chain(), toy.params(), *arguments)[1]
    np.testing.assert_array_equal(same.pull, 0)
    params, chain = merged(toy.adapters()), toy.chain()
    value, judged = draft.loss(chain, params, *arguments)
    state = chain.start(toy.keys(), toy.SHAPE)
    for number in range(3):
        state = chain.step(params, toy.conditions(), chain.row(number), state, toy.keys())
    eps = [chain.estimate(p, toy.conditions(), chain.row(3), state.latents)[1] for p in (params, toy.params())]
    expected = np.square(eps[0] - eps[1]).mean((1, 2, 3))
    np.testing.assert_allclose(judged.pull, expected, rtol=1e-4)
    np.testing.assert_allclose(value, -judged.reward.mean() + 10 * expected.mean(), rtol=1e-4)


def test_rewards_are_a_weighted_mean():
    pixels = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 4, 4, 3)).astype(np.float32))
    green = of_energy(energy.function(lambda x: 1 - x[..., 1].mean((1, 2)), name="green"), weight=3.0)
    value, parts = total([RED, green], pixels)
    red, green_mean = pixels[..., 0].mean((1, 2)), pixels[..., 1].mean((1, 2)) - 1
    np.testing.assert_allclose(parts["green"], green_mean, rtol=1e-5)
    np.testing.assert_allclose(value, (red + 3 * green_mean) / 4, rtol=1e-5)
    with pytest.raises(ArgumentError, match="name of its own"):
        total([RED, RED], pixels)
    with pytest.raises(ArgumentError, match=r"'flat'.*shape \(2,\), found \(2, 4\)"):
        total([Reward((), lambda x: x.mean((2, 3)), "flat")], pixels)
    with pytest.raises(ArgumentError, match="weight above 0, found 0"):
        of_reward(redness, weight=0)


def test_a_critics_reward(tiny_critic):
    pixels = np.random.default_rng(0).uniform(size=(2, 8, 8, 3)).astype(np.float32)
    reward = of_reward(tiny_critic.reward("overall"), ["a red cat", "a dog"], name="overall")
    expected = tiny_critic.scores(pixels, *tiny_critic.tokens(["a red cat", "a dog"]))[..., SCORES.index("overall")]
    np.testing.assert_allclose(reward(jnp.asarray(pixels)), expected, rtol=1e-5)
    with pytest.raises(ArgumentError, match="reads the prompts"):
        of_reward(tiny_critic.reward("overall"))


@pytest.mark.parametrize(
    "options, message",
    [
        (DraftConfig(k=5), "draft.k: expected 1 to the number of steps, 4, found 5"),
        (DraftConfig(rule="alignprop", k=0), "draft.k"),
        (DraftConfig(rule="refl"), "draft.stop_range: expected two of the steps 0 to 3, ascending, found 30, 39"),
        (DraftConfig(rule="alignprop"), "key: the rule 'alignprop' draws a step"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ArgumentError, match=message):
        draft.loss(toy.chain(), toy.params(), toy.conditions(), toy.keys(), toy.SHAPE, [RED], options)
