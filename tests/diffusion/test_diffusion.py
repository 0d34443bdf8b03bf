"""The diffusion model of our own: shapes, conditions, loss, training through `rahf train`, sampling with
guidance."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rahf
import rahf.steer
from rahf import diffusion
from rahf.cli import main as cli
from rahf.core.batch import fake
from rahf.core.errors import CheckpointError
from rahf.critic import energy as energy_lib
from rahf.critic import loading as critic_loading
from rahf.diffusion import loss, schedules
from rahf.diffusion.networks import blocks, pixel_unet
from rahf.diffusion.sample import GuidanceOptions
from rahf.nn import functional
from tests.helpers.diffusion_maker import TINY


def networks_build(config):
    return lambda: pixel_unet.TextToImage(config)


def network(seed=0, scale=0.0):
    """A network; with `scale`, what starts at 0 is random, so that conditions reach the output."""
    graphdef, _ = functional.abstract(networks_build(TINY))
    params = functional.init(networks_build(TINY), seed)
    flat = functional.flatten(params)
    rng = np.random.default_rng(0)
    for path, value in flat.items():
        if scale and not np.asarray(value).any() and path.endswith("kernel"):
            flat[path] = jnp.asarray(rng.normal(size=value.shape) * scale, jnp.float32)
    return graphdef, functional.unflatten(flat)


def test_sizes_and_alphas_cumprod():
    from configs.diffusion import demo as demo_diffusion

    model = demo_diffusion.config().model
    _, params = functional.abstract(networks_build(model))
    assert 1e6 < functional.count(params) < 4e6
    alphas_cumprod = pixel_unet.alphas_cumprod(model)
    assert alphas_cumprod.shape == (1000,)
    schedules.ddim(alphas_cumprod, 50)  # which refuses a schedule that cannot be sampled
    with pytest.raises(ValueError, match="model.image_size 18: expected a multiple of 8, .* is 4 .* has 2 levels"):
        functional.abstract(networks_build(dataclasses.replace(model, image_size=18)))
    heads = dataclasses.replace(model, num_attention_heads=5)
    message = "model.block_out_channels: 128 cannot be shared by model.num_attention_heads 5"
    with pytest.raises(ValueError, match=message):
        functional.abstract(networks_build(heads))


def test_cells_are_squares_of_pixels():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 4, 3)), jnp.float32)
    cells = pixel_unet.cells(x, 2)
    assert cells.shape == (2, 3, 2, 12)
    np.testing.assert_array_equal(cells[1, 2, 1].reshape(2, 2, 3), x[1, 4:6, 2:4])
    np.testing.assert_array_equal(pixel_unet.pixels(cells, 2), x)
    np.testing.assert_array_equal(pixel_unet.cells(x, 1), x)


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


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon", "sample"])
def test_the_loss_by_hand(prediction_type):
    config = dataclasses.replace(TINY, prediction_type=prediction_type)
    batch = fake(batch_size=2, image_size=16, vocab_size=40)
    t, noise = jnp.array([0, 40]), jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    seen = {}

    class Network:  # that always says 0.5
        encode = staticmethod(lambda ids, mask: seen.update(mask=mask))

        def __call__(self, z, t, prompt):
            seen.update(z=z)
            return jnp.full(z.shape, 0.5)

    dropped = jnp.array([True, False])
    losses = loss.per_example(config, Network(), batch, t, noise, dropped)
    a = pixel_unet.alphas_cumprod(config)[np.asarray(t)][:, None, None, None]
    x0 = np.asarray(batch.image) / 127.5 - 1
    v = a**0.5 * noise - (1 - a) ** 0.5 * x0
    wanted = {"epsilon": np.asarray(noise), "v_prediction": v, "sample": x0}[prediction_type]
    expected = ((0.5 - wanted) ** 2).mean((1, 2, 3))
    if prediction_type == "sample":  # as errors of v; of the first picture, almost without noise, as if it had 5% of it
        assert a[0] > 0.99
        expected /= [0.05, 1 - a[1].item()]
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    np.testing.assert_allclose(seen["z"], a**0.5 * x0 + (1 - a) ** 0.5 * noise, atol=1e-5)
    np.testing.assert_array_equal(seen["mask"], np.stack([np.zeros(12, bool), batch.text_mask[1]]))


def test_filling_examples_count_nothing():
    graphdef, params = network(scale=0.2)
    batch = fake(batch_size=4, image_size=16, vocab_size=40)
    batch = batch._replace(example_mask=np.array([True, True, True, False]), index=np.array([5, 6, 7, -1]))

    @jax.jit
    def run(batch, key):
        model = functional.merge(graphdef, params)
        return loss.drawn(TINY, model, batch, key, jnp.float32(3)), loss.repeatable(TINY, model, batch)

    total, each = run(batch, jax.random.key(3))
    changed = batch.image.copy()
    changed[3] = 0
    same, _ = run(batch._replace(image=changed), jax.random.key(3))
    assert float(total) == float(same) > 0
    other, again = run(batch, jax.random.key(4))
    assert float(other) != float(total)  # other times and noise
    np.testing.assert_array_equal(again, each)
    # Time and noise of the evaluation belong to the example, wherever it stands in a batch.
    turned = type(batch)(*(np.asarray(field)[[1, 0, 2, 3]] for field in batch))
    np.testing.assert_allclose(run(turned, jax.random.key(3))[1][:3], np.asarray(each)[[1, 0, 2]], rtol=1e-5)


@pytest.fixture(scope="module")
def trained(tiny_data, tmp_path_factory):
    """A run directory of a few steps, made by the command."""
    folder = tmp_path_factory.mktemp("diffusion")
    config = folder / "config.py"
    config.write_text(
        "import dataclasses\nfrom rahf.config import *\nfrom configs.diffusion import demo as demo_diffusion\n\n"
        "def config():\n"
        "    whole = demo_diffusion.config()\n"
        "    t5 = dataclasses.replace(whole.model.t5, width=16, heads=2, head_width=8, mlp_width=16,\n"
        "                             encoder_layers=1)\n"
        "    model = dataclasses.replace(whole.model, image_size=16, t5=t5, block_out_channels=(8,),\n"
        "        num_attention_heads=2, norm_num_groups=4, num_train_timesteps=100)\n"
        f"    data = dataclasses.replace(whole.data, path={str(tiny_data)!r}, batch_size=16, eval_batch_size=8)\n"
        "    train = dataclasses.replace(whole.train, steps=24, log_every=8, eval_every=12, eval_examples=8,\n"
        "                                checkpoint_every=12)\n"
        "    optimizer = dataclasses.replace(whole.optimizer, warmup_steps=2, learning_rate=5e-3, ema_decay=0.5)\n"
        "    return dataclasses.replace(whole, model=model, data=data, train=train, optimizer=optimizer)\n"
    )
    assert cli.main(["train", str(config), "--workdir", str(folder / "run")]) == 0
    return folder / "run"


def test_training_through_the_command(trained, capsys):
    from tests.helpers import train_maker

    rows = train_maker.rows(trained)
    losses = [row["loss/total"] for row in rows if "loss/total" in row]
    evaluated = [row["eval/loss/total"] for row in rows if "eval/loss/total" in row]
    assert len(losses) == 4 and losses[-1] < losses[0]  # at steps 8, 12 (before evaluating), 16, 24
    assert len(evaluated) == 2
    assert not any("keyword" in name for row in rows for name in row)
    with pytest.raises(CheckpointError, match="a pixel-diffusion model, no critic; load it with rahf.load"):
        critic_loading.load(trained)
    assert isinstance(rahf.load(trained), diffusion.Generator)
    assert cli.main(["evaluate", str(trained)]) == 1
    error = f"rahf: {trained}: a pixel-diffusion model, no critic; rahf evaluate measures critics\n"
    assert capsys.readouterr().err == error


def test_pictures_depend_on_prompt_and_seed_alone(trained, tiny_run):
    generator = diffusion.load(trained)
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


def test_the_reward_of_a_critic_guides(trained, tiny_critic):
    generator = diffusion.load(trained)
    options = GuidanceOptions(scale=jnp.float32(1.0), window=(0.0, 1.0), through_denoiser=False)
    reward = tiny_critic.reward("overall")
    rewarded = generator("a red circle", [3, 4], 3, reward=reward, options=options)
    expected = 1 - reward(rewarded.images, *tiny_critic.tokens("a red circle"))
    np.testing.assert_allclose(rewarded.energy, expected, rtol=1e-4)
    score = energy_lib.score(tiny_critic, "a red circle", "overall")
    same = generator("a red circle", [3, 4], 3, energy=score, options=options)
    np.testing.assert_allclose(rewarded.images, same.images, atol=1e-4)


def test_negative_prompts(trained):
    generator = diffusion.load(trained)
    plain = generator("a red circle", [3, 4], 3)
    against = generator("a red circle", [3, 4], 3, negative_prompt="a blue cross")
    assert np.abs(against.images - plain.images).max() > 1e-6
    swapped = generator(["a red circle"] * 2, [3, 4], 3, negative_prompt=["a blue cross", "a red circle"])
    np.testing.assert_allclose(swapped.images[0], against.images[0], atol=1e-5)
    # Away from the prompt itself there is nowhere to go: any scale draws what scale 1 draws.
    same = generator("a red circle", 4, 3, negative_prompt="a red circle", guidance_scale=7.0)
    np.testing.assert_allclose(same.images[0], swapped.images[1], atol=1e-5)
    once = generator("a red circle", 4, 3, guidance_scale=1.0)
    np.testing.assert_allclose(once.images, same.images, atol=1e-5)
    with pytest.raises(ValueError, match="1 prompts but 2 seeds but 3 negative prompts"):
        generator("a red circle", [3, 4], 3, negative_prompt=["a", "b", "c"])


def test_former_names_warn(trained):
    generator = diffusion.load(trained)
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
