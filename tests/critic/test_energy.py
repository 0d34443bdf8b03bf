"""Energies: hand-computed values, composition, rewards, and gradients through a critic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rahf.config import ClipBaselineConfig, Config
from rahf.core.batch import SCORES
from rahf.critic import energy
from rahf.diffusion import schedules
from rahf.diffusion.sample import GuidanceOptions, universal_guidance


class Colours:
    """A critic of colours: scores are mean red, green, blue and their mean; heatmaps the red and the blue
    channel at half the size; all times a parameter."""

    params = {"gain": jnp.float32(1.0)}

    def tokens(self, prompts):
        count = 1 if isinstance(prompts, str) else len(prompts)
        return np.ones((count, 3), np.int32), np.ones((count, 3), np.bool_)

    def scores(self, pixels, text_ids, text_mask, params=None):
        params = self.params if params is None else params
        mean = pixels.mean((1, 2))
        return params["gain"] * jnp.concatenate([mean, mean.mean(-1, keepdims=True)], -1)

    def heatmaps(self, pixels, text_ids, text_mask, params=None):
        b, h, w, _ = pixels.shape
        return pixels[..., jnp.array([0, 2])].reshape(b, h // 2, 2, w // 2, 2, 2).mean((2, 4))


def pictures():
    """Two pictures of 4 x 4 pixels: one plain, one whose right half is redder."""
    values = np.zeros((2, 4, 4, 3), np.float32)
    values[0] = [0.2, 0.4, 0.6]
    values[1, :, 2:, 0] = 0.8
    return jnp.asarray(values)


def test_scores_as_energies():
    critic = Colours()
    np.testing.assert_allclose(energy.score(critic, "a", "plausibility")(pictures()), [0.8, 0.6], rtol=1e-6)
    np.testing.assert_allclose(energy.score(critic, "a")(pictures()), [0.6, 1 - 0.4 / 3], rtol=1e-6)
    weighted = energy.score(critic, ["a", "b"], {"plausibility": 2.0, "alignment": -0.5})
    np.testing.assert_allclose(weighted(pictures()), [2 * 0.8 - 0.5 * 0.6, 2 * 0.6 - 0.5], rtol=1e-6)
    halved = energy.score(critic, critic.tokens("a"), "plausibility", params={"gain": jnp.float32(0.5)})
    np.testing.assert_allclose(halved(pictures()), [0.9, 0.8], rtol=1e-6)


def test_clip_distance():
    """Cosines 0, -1 and 1: right angles are 2 (pi/4)², opposite ones pi²/2; finite gradients at both ends."""
    critic = Colours()
    with pytest.raises(ValueError, match="expected a CLIP"):
        energy.clip_distance(critic, "a")
    critic.config = Config(model=ClipBaselineConfig())
    values = jnp.zeros((3, 4, 4, 3)).at[0, ..., 1].set(0.5).at[2, ..., 1].set(1.0)
    distance = energy.clip_distance(critic, "a")
    np.testing.assert_allclose(distance(values), [2 * (np.pi / 4) ** 2, np.pi**2 / 2, 0], atol=1e-2)
    assert np.isfinite(jax.grad(lambda x: distance(x).sum())(values)).all()


def test_heatmap_mass_and_masks():
    critic = Colours()
    np.testing.assert_allclose(energy.heatmap(critic, "a")(pictures()), [0.2, 0.4], rtol=1e-6)
    np.testing.assert_allclose(energy.heatmap(critic, "a", "misalignment")(pictures()), [0.6, 0], rtol=1e-6)
    right = np.zeros((2, 2), bool)
    right[:, 1] = True
    inside = energy.heatmap(critic, "a", mask=right)
    np.testing.assert_allclose(inside(pictures()), [0.2, 0.8], rtol=1e-6)
    np.testing.assert_allclose(energy.heatmap(critic, "a", mask=~right)(pictures()), [0.2, 0.0], atol=1e-6)
    # Of another size, with weights, one per picture: the means over cells of 2 x 2 are 0.5 and 1 in the columns.
    wide = np.tile(np.float32([0.5, 0.5, 1.0, 1.0]), (2, 4, 1))
    values = energy.heatmap(critic, "a", mask=wide)(pictures())
    small = np.asarray(jax.image.resize(wide, (2, 2, 2), "linear", antialias=True))
    expected = [0.2, (small[1, :, 1] * 0.8).sum() / small[1].sum()]
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    gradient = jax.grad(lambda x: inside(x).sum())(pictures())
    assert (gradient[:, :, :2] == 0).all() and (gradient[:, :, 2:, 0] > 0).all()  # only inside, only red


def test_sums_of_energies_are_energies():
    critic = Colours()
    total = energy.score(critic, "a", "plausibility") + 0.5 * energy.heatmap(critic, "a") * 2
    dark = energy.function(lambda x, level: jnp.square(x - level).mean((1, 2, 3)), jnp.float32(0.0), name="dark")
    total = total + 3 * dark
    squares = [(0.04 + 0.16 + 0.36) / 3, 0.64 / 6]
    np.testing.assert_allclose(total(pictures()), [1.0 + 3 * squares[0], 1.0 + 3 * squares[1]], rtol=1e-6)
    parts = total.parts(pictures())
    assert list(parts) == ["1 - plausibility", "implausibility", "dark"]
    np.testing.assert_allclose(parts["dark"], squares, rtol=1e-6)
    assert list((dark + dark).parts(pictures())) == ["dark", "dark #1"]
    for wrong in (lambda: dark * dark, lambda: dark + 1, lambda: dark * np.ones(2)):
        with pytest.raises(TypeError):
            wrong()


def test_energies_are_float32_whatever_they_are_made_of():
    critic = Colours()
    half = energy.function(lambda x: x.mean((1, 2, 3)).astype(jnp.bfloat16))
    total = energy.score(critic, "a") + half
    assert total(pictures().astype(jnp.bfloat16)).dtype == jnp.float32
    seen = []
    energy.function(lambda x: seen.append(x.dtype) or x.mean((1, 2, 3)))(pictures().astype(jnp.bfloat16))
    assert seen == [jnp.float32]


def test_rewards_as_energies():
    critic = Colours()
    red = lambda pixels: pixels[..., 0].mean((1, 2))  # noqa: E731
    np.testing.assert_allclose(energy.reward(red)(pictures()), [0.8, 0.6], rtol=1e-6)
    scaled = energy.reward(lambda pixels, gain: gain * red(pixels), jnp.float32(2.0), best=3.0, name="red")
    np.testing.assert_allclose(scaled(pictures()), [3 - 0.4, 3 - 0.8], rtol=1e-6)
    assert list((scaled + energy.reward(red)).parts(pictures())) == ["red", "<lambda>"]
    # A critic's reward: of pixels, tokens and parameters, which stay arguments of compiled programs.
    plausibility = lambda pixels, ids, mask, params: critic.scores(pixels, ids, mask, params)[:, 0]  # noqa: E731
    total = energy.reward(plausibility, *critic.tokens("a"), critic.params)
    np.testing.assert_allclose(total(pictures()), energy.score(critic, "a", "plausibility")(pictures()), rtol=1e-6)
    assert any(leaf is critic.params["gain"] for leaf in jax.tree.leaves(total))
    gradient = jax.grad(lambda x: energy.reward(red)(x).sum())(pictures())
    np.testing.assert_allclose(gradient[..., 0], -1 / 16)
    with pytest.raises(ValueError, match=r"energy 'mean': expected one number per picture, shape \(2,\), found \(\)"):
        energy.reward(lambda pixels: pixels.mean(), name="mean")(pictures())


def test_a_reward_instead_of_an_energy_in_the_sampler():
    schedule = schedules.ddim(schedules.scaled_linear(), 5)
    start = universal_guidance.noise(jax.random.key(0), 2, (4, 4, 3))
    bright = lambda pixels: pixels.mean((1, 2, 3))  # noqa: E731

    def run(**steering):
        denoiser = lambda z, t, cond: 0.9 * z  # noqa: E731
        return universal_guidance.sample(denoiser, schedule, start, decode=universal_guidance.unit_pixels, **steering)

    rewarded, lowered = run(reward=bright), run(energy=lambda pixels: 1 - bright(pixels))
    np.testing.assert_allclose(rewarded.sample, lowered.sample, atol=1e-5)
    np.testing.assert_allclose(rewarded.energy, 1 - bright(universal_guidance.unit_pixels(rewarded.sample)), rtol=1e-5)
    assert (rewarded.sample.mean((1, 2, 3)) > run().sample.mean((1, 2, 3))).all()
    with pytest.raises(ValueError, match="give an energy .to be lowered. or a reward .to be raised., not both"):
        run(energy=bright, reward=bright)


def test_the_reward_of_a_real_critic(tiny_critic):
    prompts = ["a red cat", "two dogs"]
    reward = tiny_critic.reward("overall")
    total = energy.reward(reward, *tiny_critic.tokens(prompts), tiny_critic.params)
    expected = energy.score(tiny_critic, prompts, "overall")
    np.testing.assert_allclose(total(_smooth()), expected(_smooth()), rtol=1e-5)


def test_other_weights_prompts_and_masks_compile_nothing():
    critic, count = Colours(), []

    @jax.jit
    def run(total, pixels):
        count.append(1)
        return total(pixels)

    for weight, score, mask in ((1.0, "overall", np.eye(2)), (2.0, "overall", np.ones((2, 2)))):
        total = weight * energy.score(critic, "a b", score) + energy.heatmap(critic, "c", mask=mask)
        np.testing.assert_allclose(run(total, pictures()), total(pictures()), rtol=1e-6)
    assert len(count) == 1
    # Parameters are arguments, not constants.
    leaves = jax.tree.leaves(energy.score(critic, "a"))
    assert any(leaf is critic.params["gain"] for leaf in leaves)


def test_unknown_names_and_bad_masks():
    critic = Colours()
    with pytest.raises(ValueError, match="no score is called 'plausability'. Did you mean 'plausibility'?"):
        energy.score(critic, "a", "plausability")
    with pytest.raises(ValueError, match="no heatmap is called 'implausable'. Did you mean 'implausibility'?"):
        energy.heatmap(critic, "a", "implausable")
    with pytest.raises(ValueError, match=r"mask of shape \(2, 2, 2, 1\): expected \[h,w\]"):
        energy.heatmap(critic, "a", mask=np.ones((2, 2, 2, 1)))
    with pytest.raises(ValueError, match="mask: expected bool, or weights in .0,1.; divide by 255"):
        energy.heatmap(critic, "a", mask=np.full((2, 2), 255))
    with pytest.raises(ValueError, match="mask: nothing is inside it"):
        energy.heatmap(critic, "a", mask=np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"energy 'flat': expected one number per picture, shape \(2,\), found \(\)"):
        energy.function(lambda x: x.mean(), name="flat")(pictures())


def test_a_real_critic_guides(tiny_critic):
    """Guidance of pixels by the scores and a masked heatmap of a network that reads prompts."""
    prompts = ["a red cat", "two dogs"]
    mask = np.zeros((32, 32), bool)
    mask[8:24, 8:24] = True
    total = energy.score(tiny_critic, prompts, {"overall": 1.0, "plausibility": 0.5}) + energy.heatmap(
        tiny_critic, prompts, mask=mask
    )
    pixels = _smooth()
    missing = 1 - tiny_critic.scores(pixels, *tiny_critic.tokens(prompts))
    inside = tiny_critic.heatmaps(pixels, *tiny_critic.tokens(prompts))[:, 8:24, 8:24, 0].mean((1, 2))
    expected = missing[:, SCORES.index("overall")] + 0.5 * missing[:, SCORES.index("plausibility")] + inside
    np.testing.assert_allclose(total(pixels), expected, rtol=1e-5)

    @jax.jit
    def run(total, options):
        start = universal_guidance.noise(jax.random.key(0), 2, (32, 32, 3))
        steps = schedules.ddim(schedules.squaredcos_cap_v2(100), 6)
        alphas_cumprod = jnp.asarray(schedules.squaredcos_cap_v2(100), jnp.float32)

        def denoiser(z, t, cond):  # of pictures that are grey noise of standard deviation 0.3
            a = alphas_cumprod[t][:, None, None, None]
            return jnp.sqrt(1 - a) * z / (a * 0.09 + 1 - a)

        decode = universal_guidance.unit_pixels
        return universal_guidance.sample(denoiser, steps, start, energy=total, decode=decode, options=options)

    # One compilation for both.
    guided, plain = (run(total, GuidanceOptions(scale=jnp.float32(scale))) for scale in (0.5, 0.0))
    assert (guided.energy < plain.energy).all() and not guided.trace.guarded.any()
    np.testing.assert_allclose(guided.energy, total(universal_guidance.unit_pixels(guided.sample)), rtol=1e-4)


def _smooth():
    return jax.image.resize(jax.random.uniform(jax.random.key(0), (2, 4, 4, 3)), (2, 32, 32, 3), "linear")
