"""A diffusion of pixels as a configuration of Stable Diffusion: cells, loss, training, sampling."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rahf
from configs.diffusion import demo
from rahf import diffusion
from rahf.cli import main as cli
from rahf.config import Config, DataConfig, OptimizerConfig, PatchesConfig, StableDiffusionConfig, StartConfig, to_json
from rahf.core.batch import fake
from rahf.core.errors import CheckpointError, ConfigError, PretrainedError, TrainError
from rahf.critic import loading as critic_loading
from rahf.diffusion import schedulers
from rahf.diffusion.feedback import noise
from rahf.diffusion.networks import patches
from rahf.diffusion.networks.stable_diffusion import StableDiffusion, latent_channels, vae_scale_factor
from rahf.diffusion.pipeline import Pipeline
from rahf.diffusion.task import TextToImageTask
from rahf.nn import functional
from rahf.registry import task as task_of
from rahf.text.clip_vocabulary import train_clip_tokenizer
from tests.helpers import train_maker
from tests.helpers.diffusion_maker import OF_PIXELS, varied


def test_the_demo_is_small_and_without_an_autoencoder():
    model = demo.config().model
    _, params = functional.abstract(lambda: StableDiffusion(model))
    assert 1e6 < functional.count(params) < 4e6
    assert not any(path.startswith("vae") for path in functional.flatten(params))
    assert (vae_scale_factor(model), latent_channels(model)) == (4, 48)
    with pytest.raises(ConfigError, match="model.patches.size: expected a divisor of model.image_size 18, found 4"):
        functional.abstract(lambda: StableDiffusion(dataclasses.replace(model, image_size=18)))
    nothing = dataclasses.replace(model, patches=None)
    with pytest.raises(ConfigError, match="model.vae, model.vae_tiny, model.patches: expected one of them"):
        functional.abstract(lambda: StableDiffusion(nothing))
    with pytest.raises(ConfigError, match="model.unet.in_channels: expected 12, or 25 for inpainting"):
        functional.abstract(lambda: StableDiffusion(dataclasses.replace(model, patches=PatchesConfig(size=2))))


def test_cells_are_squares_of_pixels():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 4, 3)), jnp.float32)
    cells = patches.cells(x, 2)
    assert cells.shape == (2, 3, 2, 12)
    np.testing.assert_array_equal(cells[1, 2, 1].reshape(2, 2, 3), x[1, 4:6, 2:4])
    np.testing.assert_array_equal(patches.pixels(cells, 2), x)
    np.testing.assert_array_equal(patches.cells(x, 1), x)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon", "sample"])
def test_the_loss_by_hand(prediction_type):
    scheduler = dataclasses.replace(OF_PIXELS.scheduler, prediction_type=prediction_type, num_train_timesteps=50)
    config = dataclasses.replace(OF_PIXELS, scheduler=scheduler)
    seen = {}

    class Network(StableDiffusion):  # that always says 0.5
        def __call__(self, latents, timesteps, conditions):
            seen.update(z=latents, t=timesteps)
            return jnp.full(latents.shape, 0.5)

    graphdef, _ = functional.abstract(lambda: Network(config))
    params = functional.init(lambda: Network(config), 0)
    pictures = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3))
    t, keys = jnp.array([0, 40]), jax.vmap(jax.random.key)(jnp.arange(2))
    losses = noise.per_picture(graphdef, params, None, pictures, t, keys)
    a = schedulers.alphas_cumprod(scheduler)[np.asarray(t)][:, None, None, None]
    x0 = np.asarray(patches.cells(2 * pictures - 1, 4))
    drawn = np.stack([jax.random.normal(jax.random.split(key)[1], (4, 4, 48)) for key in keys])
    v = a**0.5 * drawn - (1 - a) ** 0.5 * x0
    wanted = {"epsilon": drawn, "v_prediction": v, "sample": x0}[prediction_type]
    expected = ((0.5 - wanted) ** 2).mean((1, 2, 3))
    if prediction_type == "sample":  # as errors of v; of the first picture, almost without noise, as if it had 5% of it
        assert a[0] > 0.99
        expected /= [0.05, 1 - a[1].item()]
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    np.testing.assert_allclose(seen["z"], a**0.5 * x0 + (1 - a) ** 0.5 * drawn, atol=1e-5)
    np.testing.assert_array_equal(seen["t"], t)


def made_task(tmp_path, **changes):
    tokenizer = train_clip_tokenizer(["a red circle", "a blue cross"], OF_PIXELS.text_encoder.vocab_size)
    config = Config(workdir=str(tmp_path / "run"), model=OF_PIXELS, data=DataConfig(max_prompt_tokens=40))
    return TextToImageTask(dataclasses.replace(config, **changes), tokenizer)


def test_filling_examples_count_nothing_and_padding_is_the_pipelines(tmp_path):
    task = made_task(tmp_path)
    graphdef, _ = functional.abstract(task.build())
    params = varied(functional.init(task.build(), 0))
    prompts = ["a red circle", "a blue cross", "a red cross", ""]
    encoded = [task.tokenizer.encode_prompt(prompt, 40) for prompt in prompts]
    batch = fake(batch_size=4, image_size=16, vocab_size=40)._replace(
        text_ids=np.stack([one.ids for one in encoded]), text_mask=np.stack([one.mask for one in encoded]),
        example_mask=np.array([True, True, True, False]), index=np.array([5, 6, 7, -1]),
    )  # fmt: skip

    @jax.jit
    def run(batch, key):
        model = functional.merge(graphdef, params)
        return task.loss(model, batch, key, None, 0, jnp.float32(3)).total, task._repeatable(model, batch)

    total, each = run(batch, jax.random.key(3))
    changed = batch.image.copy()
    changed[3] = 0
    same, _ = run(batch._replace(image=changed), jax.random.key(3))
    assert float(total) == float(same) > 0
    other, again = run(batch, jax.random.key(4))
    assert float(other) != float(total)  # other times and noise
    np.testing.assert_array_equal(again, each)
    # Time and noise of the evaluation belong to the example, wherever it stands in a batch.
    turned = type(batch)(*(None if field is None else np.asarray(field)[[1, 0, 2, 3]] for field in batch))
    np.testing.assert_allclose(run(turned, jax.random.key(3))[1][:3], np.asarray(each)[[1, 0, 2]], rtol=1e-5)
    pipe = Pipeline(task.config, params, task.tokenizer)
    np.testing.assert_array_equal(task._padded(batch), pipe.tokens(prompts)[0])
    np.testing.assert_array_equal(task._nothing(), pipe.tokens("")[0])


def test_what_cannot_be_trained(tmp_path, tiny_data):
    xl = dataclasses.replace(OF_PIXELS, text_encoder_2=OF_PIXELS.text_encoder)
    with pytest.raises(TrainError, match="one text tower"):
        made_task(tmp_path, model=xl)
    with pytest.raises(TrainError, match="data.max_prompt_tokens 77: expected 40"):
        made_task(tmp_path, data=DataConfig(max_prompt_tokens=77))
    with_autoencoder = dataclasses.replace(StableDiffusionConfig(), image_size=64)
    with pytest.raises(TrainError, match="optimizer.trainable: give the parts that learn"):
        made_task(tmp_path, model=with_autoencoder, data=DataConfig(max_prompt_tokens=77))
    config = Config(
        workdir=str(tmp_path / "run"), model=OF_PIXELS, data=DataConfig(str(tiny_data), max_prompt_tokens=40)
    )
    with pytest.raises(TrainError, match='a SentencePiece vocabulary, .* set data.tokenizer to "prompts"'):
        task_of(config)
    with pytest.raises(TrainError, match="start.model: expected a model directory .*configs/diffusion/demo.py"):
        task_of(dataclasses.replace(config, model=StableDiffusionConfig()))
    with pytest.raises(TrainError, match="a diffusion model has no published towers; give start.model"):
        task_of(dataclasses.replace(config, start=StartConfig(vision="somewhere")))


@pytest.fixture(scope="module")
def trained(tiny_data, tmp_path_factory):
    """A run directory of a few steps, made by the command."""
    folder = tmp_path_factory.mktemp("diffusion")
    whole = demo.config()
    config = dataclasses.replace(
        whole,
        model=OF_PIXELS,
        data=dataclasses.replace(
            whole.data, path=str(tiny_data), batch_size=16, eval_batch_size=8, max_prompt_tokens=40
        ),
        train=dataclasses.replace(
            whole.train, steps=24, log_every=8, eval_every=12, eval_examples=8, checkpoint_every=12
        ),
        optimizer=OptimizerConfig(
            warmup_steps=2, learning_rate=5e-3, schedule="cosine", ema_decay=0.5, weight_decay=0.01
        ),
    )
    file = folder / "config.py"
    file.write_text(
        f"from rahf.config import from_json\n\n\ndef config():\n    return from_json({to_json(config)!r})\n"
    )
    assert cli.main(["train", str(file), "--workdir", str(folder / "run")]) == 0
    return folder / "run"


def test_training_through_the_command(trained, capsys, tmp_path):
    rows = train_maker.rows(trained)
    losses = [row["loss/total"] for row in rows if "loss/total" in row]
    evaluated = [row["eval/loss/total"] for row in rows if "eval/loss/total" in row]
    assert len(losses) == 4 and losses[-1] < losses[0]  # at steps 8, 12 (before evaluating), 16, 24
    assert len(evaluated) == 2
    assert not any("keyword" in name for row in rows for name in row)
    with pytest.raises(CheckpointError, match="a stable-diffusion model, no critic; load it with rahf.load"):
        critic_loading.load(trained)
    assert cli.main(["evaluate", str(trained)]) == 1
    error = f"rahf: {trained}: a stable-diffusion model, no critic; rahf evaluate measures critics\n"
    assert capsys.readouterr().err == error
    with pytest.raises(PretrainedError, match="diffusers has no pipeline over squares of pixels"):
        diffusion.export_diffusers(trained, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_the_trained_model_draws(trained):
    pipe = rahf.load(trained)
    assert isinstance(pipe, Pipeline)
    options = dict(num_inference_steps=4, guidance_scale=2.0)
    drawn = pipe(["a red circle", "a blue cross"], seeds=[3, 4], **options)
    assert drawn.images.shape == (2, 16, 16, 3)
    swapped = pipe(["a blue cross", "a red circle"], seeds=[4, 3], **options)
    np.testing.assert_allclose(swapped.images, drawn.images[::-1], atol=1e-4)
    pictures = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
    np.testing.assert_allclose(pipe.decode(pipe.encode(pictures)), pictures, atol=1e-6)  # nothing is lost


def test_former_runs_of_the_pixel_family_go_on_nowhere(tmp_path):
    tree = json.loads(to_json(Config(workdir=str(tmp_path / "run"))))
    tree["model"] = {"family": "pixel-diffusion"}
    config = rahf.config.from_json(json.dumps(tree))
    with pytest.raises(TrainError, match=re.escape("configs/diffusion/demo.py trains its successor")):
        task_of(config)
