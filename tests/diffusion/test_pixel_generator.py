"""The generator in pixels of earlier versions: shapes, conditions, sampling with guidance, inpainting."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rahf
import rahf.steer
from rahf import diffusion
from rahf.config import DataConfig
from rahf.core.batch import fake
from rahf.core.errors import CheckpointError
from rahf.critic import energy as energy_lib
from rahf.critic import loading as critic_loading
from rahf.diffusion import schedules
from rahf.diffusion.networks import blocks, pixel_unet
from rahf.diffusion.sample import GuidanceOptions
from rahf.nn import functional
from rahf.text import load_tokenizer
from tests.helpers import diffusion_maker
from tests.helpers.diffusion_maker import TINY

#: Cheap to compile.
STRONG = GuidanceOptions(scale=2.0, window=(0, 1), through_denoiser=False, remat=False)


def networks_build(config):
    return lambda: pixel_unet.TextToImage(config)


def network(seed=0, scale=0.0):
    """A network; with `scale`, what starts at 0 is random, so that conditions reach the output."""
    graphdef, _ = functional.abstract(networks_build(TINY))
    return graphdef, diffusion_maker.varied(functional.init(networks_build(TINY), seed), scale=scale)


def test_sizes_and_alphas_cumprod():
    alphas_cumprod = pixel_unet.alphas_cumprod(TINY)
    assert alphas_cumprod.shape == (50,)
    schedules.ddim(alphas_cumprod, 50)  # which refuses a schedule that cannot be sampled
    with pytest.raises(ValueError, match="model.image_size 18: expected a multiple of 8, .* is 4 .* has 2 levels"):
        functional.abstract(networks_build(dataclasses.replace(TINY, image_size=18, patch_size=4)))
    heads = dataclasses.replace(TINY, num_attention_heads=5)
    message = "model.block_out_channels: 16 cannot be shared by model.num_attention_heads 5"
    with pytest.raises(ValueError, match=message):
        functional.abstract(networks_build(heads))


def test_group_norm_against_a_loop():
    norm = blocks.GroupNorm(4, 2, dtype=jnp.float32)
    x = np.random.default_rng(0).normal(2, 3, (2, 3, 3, 4)).astype(np.float32)
    normed = np.asarray(norm(jnp.asarray(x)))
    for b in range(2):
        for group in (slice(0, 2), slice(2, 4)):
            part = x[b, :, :, group]
            np.testing.assert_allclose(normed[b, :, :, group], (part - part.mean()) / part.std(), atol=1e-4)


def test_the_prompt_matters_and_its_padding_does_not():
    graphdef, params = network(scale=0.2)
    batch = fake(batch_size=3, image_size=16, vocab_size=40)
    z = jax.random.normal(jax.random.key(0), (3, 16, 16, 3))

    @jax.jit
    def run(ids, mask, t):
        model = functional.merge(graphdef, params)
        return model(z, t, model.encode(ids, mask))

    t = jnp.array([0, 20, 49])
    output = run(batch.text_ids, batch.text_mask, t)
    assert output.shape == z.shape and output.dtype == jnp.float32 and np.isfinite(output).all()
    garbage = np.where(batch.text_mask, batch.text_ids, 17)
    np.testing.assert_allclose(run(garbage, batch.text_mask, t), output, atol=1e-5)
    other = np.where(batch.text_mask, 7, batch.text_ids)
    assert np.abs(run(other, batch.text_mask, t) - output).max() > 1e-3
    none = run(batch.text_ids, np.zeros_like(batch.text_mask), t)  # the empty prompt
    assert np.isfinite(none).all() and np.abs(none - output).max() > 1e-3
    np.testing.assert_allclose(run(other, np.zeros_like(batch.text_mask), t), none, atol=1e-6)
    assert np.abs(run(batch.text_ids, batch.text_mask, t[::-1]) - output).max() > 1e-3


@pytest.fixture(scope="module")
def saved(tiny_data, tmp_path_factory):
    """A directory of random parameters."""
    folder, data = tmp_path_factory.mktemp("diffusion"), DataConfig(max_prompt_tokens=24)
    tokenizer = load_tokenizer(tiny_data / "tokenizer.model")
    t5 = dataclasses.replace(TINY.t5, vocab_size=tokenizer.vocab_size + 5)
    return diffusion_maker.save(folder / "run", dataclasses.replace(TINY, t5=t5), tokenizer, data)


def test_what_it_is(saved, capsys):
    with pytest.raises(CheckpointError, match="a pixel-diffusion model, no critic; load it with rahf.load"):
        critic_loading.load(saved)
    assert isinstance(rahf.load(saved), diffusion.Generator)


def test_pictures_depend_on_prompt_and_seed_alone(saved, tiny_run):
    generator = diffusion.load(saved)
    drawn = generator(["a red circle", "a blue cross"], seeds=[3, 4], num_inference_steps=4)
    assert drawn.images.shape == (2, 16, 16, 3) and drawn.uint8.dtype == np.uint8 and drawn.energy is None
    assert float(drawn.images.min()) >= 0 and float(drawn.images.max()) <= 1
    swapped = generator(["a blue cross", "a red circle"], seeds=[4, 3], num_inference_steps=4)
    np.testing.assert_allclose(swapped.images, drawn.images[::-1], atol=1e-4)
    dark = lambda pixels: pixels.mean((1, 2, 3))  # noqa: E731
    guided, plain = (  # one compilation
        generator(
            "a red circle",
            [3, 4],
            num_inference_steps=4,
            energy=dark,
            options=GuidanceOptions(scale=jnp.float32(scale)),
        )
        for scale in (1.0, 0.0)
    )
    np.testing.assert_allclose(plain.images[0], drawn.images[0], atol=1e-4)
    assert (guided.energy < plain.energy).all()
    np.testing.assert_allclose(guided.energy, dark(guided.images), rtol=1e-5)
    bright = lambda pixels: 1 - dark(pixels)  # noqa: E731
    rewarded = generator("a red circle", [3, 4], 4, reward=bright, options=GuidanceOptions(scale=jnp.float32(1.0)))
    np.testing.assert_allclose(rewarded.images, guided.images, atol=1e-4)
    with pytest.raises(ValueError, match="give an energy .to be lowered. or a reward"):
        generator("a red circle", reward=bright, energy=dark)
    with pytest.raises(ValueError, match="2 prompts but 3 seeds"):
        generator(["a", "b"], [1, 2, 3])
    with pytest.raises(CheckpointError, match="a critic, no diffusion model; load it with rahf.load"):
        diffusion.load(tiny_run)


def test_the_reward_of_a_critic_guides(saved, tiny_critic):
    generator = diffusion.load(saved)
    options = GuidanceOptions(scale=jnp.float32(1.0), window=(0.0, 1.0), through_denoiser=False)
    reward = tiny_critic.reward("overall")
    rewarded = generator("a red circle", [3, 4], 3, reward=reward, options=options)
    expected = 1 - reward(rewarded.images, *tiny_critic.tokens("a red circle"))
    np.testing.assert_allclose(rewarded.energy, expected, rtol=1e-4)
    score = energy_lib.score(tiny_critic, "a red circle", "overall")
    same = generator("a red circle", [3, 4], 3, energy=score, options=options)
    np.testing.assert_allclose(rewarded.images, same.images, atol=1e-4)


def test_negative_prompts(saved):
    generator = diffusion.load(saved)
    plain = generator("a red circle", [3, 4], 3)
    against = generator("a red circle", [3, 4], 3, negative_prompt="a blue cross")
    assert np.abs(against.images - plain.images).max() > 1e-6
    swapped = generator(["a red circle"] * 2, [3, 4], 3, negative_prompt=["a blue cross", "a red circle"])
    np.testing.assert_allclose(swapped.images[0], against.images[0], atol=1e-4)
    # Away from the prompt itself there is nowhere to go: any scale draws what scale 1 draws.
    same = generator("a red circle", 4, 3, negative_prompt="a red circle", guidance_scale=7.0)
    np.testing.assert_allclose(same.images[0], swapped.images[1], atol=1e-4)
    once = generator("a red circle", 4, 3, guidance_scale=1.0)
    np.testing.assert_allclose(once.images, same.images, atol=1e-4)
    with pytest.raises(ValueError, match="1 prompts but 2 seeds but 3 negative prompts"):
        generator("a red circle", [3, 4], 3, negative_prompt=["a", "b", "c"])


def test_former_names_warn(saved):
    generator = diffusion.load(saved)
    with pytest.warns(DeprecationWarning) as warned:
        former = generator("a red circle", 4, steps=3, prompt_scale=1.5)
    assert {str(one.message).split("; ")[0] for one in warned} == {
        "Generator.__call__: argument steps is now called num_inference_steps",
        "Generator.__call__: argument prompt_scale is now called guidance_scale",
    }
    np.testing.assert_array_equal(former.images, generator("a red circle", 4, 3, guidance_scale=1.5).images)
    with pytest.warns(DeprecationWarning, match="Trace.signal is now called Trace.alphas_cumprod"):
        np.testing.assert_array_equal(former.trace.signal, former.trace.alphas_cumprod)
    with pytest.warns(DeprecationWarning, match="rahf.diffusion.painter is now called rahf.steer.painter"):
        assert diffusion.painter is rahf.steer.painter


@pytest.fixture(scope="module")
def generator(saved):
    return diffusion.load(saved)


def test_inpainting_keeps_what_is_known(generator):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (2, 16, 16, 3), np.uint8)
    masks = np.zeros((2, 16, 16), bool)
    masks[0, 4:10, 4:10] = masks[1, :, 8:] = True
    painted = generator.inpaint(pictures, masks, ["a red circle", "a blue cross"], [3, 4], num_inference_steps=4)
    assert painted.energy is None and painted.images.shape == pictures.shape
    np.testing.assert_array_equal(painted.uint8[~masks], pictures[~masks])
    assert (painted.uint8[masks] != pictures[masks]).mean() > 0.9
    floats = generator.inpaint(
        pictures / np.float32(255), masks, ["a red circle", "a blue cross"], [3, 4], num_inference_steps=4
    )
    np.testing.assert_array_equal(floats.uint8, painted.uint8)
    one = generator.inpaint(
        pictures[0], masks[0], "a red circle", [3, 8], num_inference_steps=4
    )  # one picture, two seeds
    np.testing.assert_allclose(one.images[0], painted.images[0], atol=1e-4)
    assert np.abs(one.images[1] - one.images[0])[masks[0]].max() > 1e-3
    other = pictures.copy()
    other[~masks] = 255 - other[~masks]  # what is painted follows what is known, and what was there does not matter
    around = generator.inpaint(other, masks, ["a red circle", "a blue cross"], [3, 4], num_inference_steps=4)
    assert np.abs(around.images - painted.images)[masks].max() > 1e-3
    hidden = np.where(masks[..., None], 0, pictures)
    np.testing.assert_array_equal(generator.inpaint(hidden, masks, ["a red circle", "a blue cross"], [3, 4], 4).uint8,
                                  painted.uint8)  # fmt: skip


def test_resampling_and_guidance_while_inpainting(generator):
    picture, mask = np.full((16, 16, 3), 128, np.uint8), np.zeros((16, 16), bool)
    mask[:, 8:] = True
    options = dict(prompts="a red circle", seeds=[1, 2], num_inference_steps=4)
    plain = generator.inpaint(picture, mask, **options)
    twice = generator.inpaint(picture, mask, options=GuidanceOptions(recurrences=2, window=(0.0, 1.0)), **options)
    assert twice.energy is None and len(plain.trace.step) == 4 and len(twice.trace.step) == 8
    np.testing.assert_array_equal(twice.uint8[:, ~mask], plain.uint8[:, ~mask])
    assert np.abs(twice.images - plain.images)[:, mask].max() > 1e-3
    dark = lambda pixels: pixels.mean((1, 2, 3))  # noqa: E731
    guided = generator.inpaint(picture, mask, energy=dark, options=STRONG, **options)
    assert (dark(guided.images) < dark(plain.images)).all()
    np.testing.assert_array_equal(guided.uint8[:, ~mask], plain.uint8[:, ~mask])


def test_bad_pictures_to_inpaint(generator):
    picture, mask = np.zeros((16, 16, 3), np.uint8), np.ones((16, 16), bool)
    with pytest.raises(ValueError, match=r"images of shape \(1, 8, 8, 3\) .*expected \[B,16,16,3\] and bool"):
        generator.inpaint(picture[:8, :8], mask, "a red circle")
    with pytest.raises(ValueError, match=r"masks of shape \(1, 16, 16\) \(uint8\)"):
        generator.inpaint(picture, mask.astype(np.uint8), "a red circle")
    with pytest.raises(ValueError, match="2 images but 3 masks"):
        generator.inpaint(np.stack([picture] * 2), np.stack([mask] * 3), "a red circle")
    with pytest.raises(ValueError, match="images: floats from 0 to 200, expected 0..1"):
        generator.inpaint(np.float32(picture + 200), mask, "a red circle")
    with pytest.raises(ValueError, match="1 prompts but 3 seeds but 2 images"):
        generator.inpaint(np.stack([picture] * 2), mask, "a red circle", [1, 2, 3])
