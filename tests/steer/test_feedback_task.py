"""Stable Diffusion learns from critics: batches of prompts, the loss and gradient of each method, and when to stop."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from rahf import registry
from rahf.config import (
    DataConfig,
    DdpoConfig,
    DraftConfig,
    FeedbackConfig,
    LoraConfig,
    OptimizerConfig,
    StartConfig,
    TrainConfig,
)
from rahf.core.errors import ArgumentError, ConfigError, DataError, DatasetError, TrainError
from rahf.diffusion import schedulers
from rahf.diffusion.pipeline import Pipeline
from rahf.nn import functional
from rahf.steer import chosen_pictures, feedback_prompts
from rahf.steer.chosen_task import ChosenTask
from rahf.steer.feedback_task import GUIDING, HELD_OUT, FeedbackTask
from rahf.training import sharding, trainable
from rahf.training import start as start_lib
from rahf.training.step import loss_and_gradients
from tests.helpers import stable_diffusion_maker as maker

PROMPTS = ["cat", "dog", "bird"]
LORA = LoraConfig(rank=2, alpha=2.0, patterns=("unet/conv_in/kernel",))


class Critic:
    """The mean of one colour, times a parameter; bad at the left."""

    outputs = types.SimpleNamespace(heatmaps=("implausibility",))

    def __init__(self, colour):
        self.colour, self.params = colour, {"scale": jnp.float32(2.0)}

    def tokens(self, prompts):
        return np.asarray([[len(p)] for p in prompts], np.int32), np.ones((len(prompts), 1), bool)

    def reward(self, score):
        def reward(pixels, text_ids, text_mask=None, params=None):
            assert text_ids.shape == text_mask.shape
            return params["scale"] * pixels[..., self.colour].mean((1, 2))

        reward.critic = self
        return reward

    def heatmaps(self, pixels, text_ids, text_mask, params):
        maps = jnp.zeros((len(pixels), 4, 4, 2)).at[:, :, :2, 0].set(1.0)
        return maps.at[..., 1].set(jnp.nan)  # of a heatmap that is not predicted


def config(folder, **changes):
    (folder / "prompts.txt").write_text("cat\n\ndog \nbird\n")
    feedback = FeedbackConfig(
        prompts=str(folder / "prompts.txt"),
        eval_prompts=str(folder / "prompts.txt"),
        method="draft",
        critics=("guide", "second"),
        weights=(1.0, 3.0),
        held_out="judge",
        num_inference_steps=2,
        guidance_scale=2.0,
    )
    return dataclasses.replace(
        maker.config(),
        workdir=str(folder / "run"),
        model=maker.FLAT,
        data=DataConfig(batch_size=4, eval_batch_size=2, max_prompt_tokens=12),
        feedback=dataclasses.replace(feedback, **changes),
        optimizer=OptimizerConfig(lora=LORA),
        train=TrainConfig(best_metric=HELD_OUT),
    )


def task(folder, **changes):
    critics = {"guide": Critic(0), "second": Critic(1), "judge": Critic(2)}
    return FeedbackTask(config(folder, **changes), maker.tokenizer(), critics)


@pytest.fixture(scope="module")
def pipe():
    return maker.pipeline(model=maker.FLAT)


def gradients(task, pipe, b=0.0):
    """A batch, loss and gradients in the adapters, and all parameters; where b is 0, these are the base model's."""
    batch = next(task.train_loader())
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), pipe.params)
    abstract = trainable.abstract_lora(task.config.optimizer, shapes)["adapters"]
    adapters = jax.tree.map(lambda x: jnp.full(x.shape, b if x.shape[0] == 2 else 0.3), abstract)

    def merge(tree):
        return trainable.merged(pipe.params, {"scale": jnp.float32(1), "adapters": tree})

    def step(tree, batch):
        return loss_and_gradients(task, pipe.graphdef, tree, batch, jnp.int32(0), merge, pipe.params)

    return batch, *jax.jit(step)(adapters, batch), merge(adapters)


def test_draft(tmp_path, pipe):
    """The loss is the negative weighted reward of the pipeline's pictures; adapters alone have a gradient."""
    learning = task(tmp_path, draft=DraftConfig(k=2), pull_weight=0.5)
    batch, loss, gradient, params = gradients(learning, pipe, b=0.1)
    pipe = Pipeline(pipe.config, params, pipe.tokenizer)
    prompts = [PROMPTS[number] for number in batch.prompt]
    pictures = pipe(prompts, seeds=batch.seeds.tolist(), num_inference_steps=2, guidance_scale=2.0).images
    expected = 2 * (0.25 * pictures[..., 0].mean() + 0.75 * pictures[..., 1].mean())
    np.testing.assert_allclose(loss.parts["reward"], expected, atol=1e-4)
    assert loss.parts["pull"] > 1e-3  # its value: tests/diffusion/feedback/test_draft.py
    np.testing.assert_allclose(loss.total, -expected + 0.5 * loss.parts["pull"], atol=1e-4)
    kernel = gradient["unet"]["conv_in"]["kernel"]
    assert set(gradient) == {"unet"} and np.asarray(kernel["b"]).any() and np.asarray(kernel["a"]).any()


def test_ddpo(tmp_path, pipe):
    """At the policy that has drawn, the loss is minus the mean advantage, which is 0 for each prompt, and the pull.

    Of several updates from a batch, the first has the same loss.
    """
    options = dict(method="ddpo", eta=1.0, pictures_per_prompt=2, pull_weight=0.5)
    learning = task(tmp_path, ddpo=DdpoConfig(place_share=0.5, updates=2), **options)
    batch, loss, gradient, params = gradients(learning, pipe, b=0.1)
    assert learning.updates_per_batch == 2 and task(tmp_path, draft=DraftConfig()).updates_per_batch == 1
    assert batch.prompt[0] == batch.prompt[1] != batch.prompt[2] == batch.prompt[3]
    assert 0 < float(loss.parts["reward"]) < 2 and loss.parts["pull"] > 1e-3
    np.testing.assert_allclose(loss.total, 0.5 * loss.parts["pull"], atol=1e-5)

    @jax.jit
    def first_of_several(params, base, batch):
        model, other = (functional.merge(pipe.graphdef, tree) for tree in (params, base))
        batch = learning.rollout(model, batch)
        return learning.loss(model, batch, jax.random.key(0), None, jnp.int32(0), jnp.float32(4), other)

    again = first_of_several(params, pipe.params, batch)
    np.testing.assert_allclose(again.total, loss.total, atol=1e-4)
    np.testing.assert_allclose(again.parts["reward"], loss.parts["reward"], atol=1e-5)
    assert np.asarray(gradient["unet"]["conv_in"]["kernel"]["b"]).any()


def test_evaluation_judges_by_all_critics(tmp_path, pipe):
    learning = task(tmp_path)
    evaluator = learning.evaluator(pipe.graphdef, sharding.make_mesh(learning.config.mesh, jax.devices()[:1]))
    evaluation = evaluator.evaluate(pipe.params)
    pictures = pipe(PROMPTS, seeds=[0, 1, 2], num_inference_steps=2, guidance_scale=2.0).images
    red, green, blue = 2 * pictures.mean((0, 1, 2))
    assert evaluation.count == 3 and list(evaluation.metrics) == learning.metric_names()
    np.testing.assert_allclose(
        list(evaluation.metrics.values()), [0.25 * red + 0.75 * green, red, green, blue], atol=1e-4
    )
    assert "held out" in evaluator.summary(evaluation.metrics)


def test_reward_hacking_ends_the_run(tmp_path):
    learning = task(tmp_path)
    curves = [(0.1, 0.5), (float("nan"), float("nan")), (0.2, 0.4), (0.3, 0.3)]
    rows = [{GUIDING: guiding, HELD_OUT: judge} for guiding, judge in curves]
    assert learning.stop_reason(rows[:3]) is None
    assert "reward hacking" in learning.stop_reason(rows)
    assert task(tmp_path, held_out="").stop_reason(rows) is None


def test_batches_of_prompts():
    encode = lambda prompts: (
        (np.asarray([[len(p)] for p in prompts]),),
        None,
        ((np.arange(len(prompts)), np.ones(len(prompts))),),
    )
    make = lambda seed=0, process=(0, 1): feedback_prompts.PromptLoader(PROMPTS, encode, 4, 2, seed, process)
    loader, batches = make(), []
    for _ in range(3):
        batches.append(next(loader))
    drawn = np.concatenate([batch.prompt[::2] for batch in batches])
    assert sorted(drawn[:3]) == sorted(drawn[3:]) == [0, 1, 2]  # each once a round
    for batch in batches:
        np.testing.assert_array_equal(batch.prompt[::2], batch.prompt[1::2])
        np.testing.assert_array_equal(batch.ids[0][:, 0], [len(PROMPTS[number]) for number in batch.prompt])
        np.testing.assert_array_equal(batch.tokens[0][0], batch.prompt)
    assert len(set(np.concatenate([batch.seeds for batch in batches]).tolist())) == 12
    other = make()
    other.set_state({"batches": 2, **{k: v for k, v in loader.get_state().items() if k != "batches"}})
    again = next(other)
    np.testing.assert_array_equal(again.seeds, batches[2].seeds)
    shares = [next(make(process=(number, 2))) for number in range(2)]
    np.testing.assert_array_equal(np.concatenate([s.seeds for s in shares]), batches[0].seeds)
    np.testing.assert_array_equal(np.concatenate([s.prompt for s in shares]), batches[0].prompt)
    with pytest.raises(DataError, match="another seed"):
        make(seed=1).set_state(loader.get_state())
    with pytest.raises(ConfigError, match="pictures_per_prompt, 3"):
        feedback_prompts.PromptLoader(PROMPTS, encode, 4, 3, 0)
    whole = feedback_prompts.eval_batches(PROMPTS, encode, 2)
    assert [batch.prompt.tolist() for batch in whole] == [[0, 1], [2, 2]]
    assert whole[1].example_mask.tolist() == [True, False]


@pytest.mark.parametrize(
    "changes, error, message",
    [
        (dict(critics=()), TrainError, "found 0 critics, 1 scores, 2 weights"),
        (dict(weights=(1.0,)), TrainError, "found 2 critics, 1 scores, 1 weights"),
        (dict(weights=(1.0, 0.0)), ArgumentError, "'second overall': expected a weight above 0"),
        (dict(held_out="guide"), TrainError, "must differ"),
        (dict(draft=DraftConfig(k=3)), ArgumentError, "draft.k: expected 1 to the number of steps, 2"),
        (dict(method="ddpo"), ArgumentError, "ddim without noise"),
        (dict(method="ddpo", eta=1.0, ddpo=DdpoConfig(updates=0)), ArgumentError, "ddpo.updates: expected at least 1"),
        (dict(pull_weight=-1.0), TrainError, "pull_weight: expected a number of at least 0"),
        (dict(method="chosen", pull_weight=1.0), TrainError, "pull_weight: is for draft and ddpo"),
    ],
)
def test_contradictions(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        task(tmp_path, **changes)


def test_bad_configs(tmp_path):
    whole = config(tmp_path)
    for changed, message in (
        (dataclasses.replace(whole, feedback=FeedbackConfig()), "feedback.method: rahf train fine-tunes"),
        (dataclasses.replace(whole, optimizer=OptimizerConfig()), "optimizer.lora.rank"),
        (
            dataclasses.replace(
                whole,
                feedback=dataclasses.replace(whole.feedback, pull_weight=1.0),
                optimizer=OptimizerConfig(lora=LORA, trainable=("unet/conv_out",)),
            ),
            "pull_weight: compares with the network without adapters",
        ),
        (dataclasses.replace(whole, model=maker.config(inpaints=True).model), "a model of inpainting"),
        (
            dataclasses.replace(
                whole,
                feedback=dataclasses.replace(whole.feedback, method="ddpo", eta=1.0),
                train=dataclasses.replace(whole.train, accumulate=2),
            ),
            "train.accumulate",
        ),
    ):
        with pytest.raises(TrainError, match=message):
            FeedbackTask(changed, maker.tokenizer(), {})
    with pytest.raises(TrainError, match="give start.model"):
        registry.task(whole)
    (tmp_path / "empty.txt").write_text("\n\n")
    for path, message in (("", "feedback.prompts: give"), (str(tmp_path / "none"), "cannot be read"),
                          (str(tmp_path / "empty.txt"), "has no prompt")):  # fmt: skip
        with pytest.raises(DatasetError, match=message):
            feedback_prompts.read(path, "feedback.prompts")


def test_the_network_is_that_of_the_start(tmp_path, monkeypatch):
    """Through the registry: networks, vocabulary and critics by their names."""
    from rahf.config import StableDiffusionConfig
    from rahf.critic import loading

    monkeypatch.setattr(loading, "load", lambda name: Critic(("guide", "second", "judge").index(name)))
    maker.save(tmp_path / "base", maker.FLAT)
    whole = dataclasses.replace(
        config(tmp_path), model=StableDiffusionConfig(), start=StartConfig(model=str(tmp_path / "base"))
    )
    learning = registry.task(whole)
    assert learning.config.model == maker.FLAT and sorted(learning.critics) == ["guide", "judge", "second"]
    start_lib.check(learning.config)
    assert learning.saved_files()["tokenizer.model"].content == maker.tokenizer().model


def chosen(folder, lines):
    (folder / "chosen.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder / "chosen.jsonl")


def pictures(folder):
    """Two pictures, one twice as wide, and a line for a third that is missing."""
    for name, size in (("a", (8, 8)), ("b", (16, 8))):
        Image.fromarray(np.full((size[1], size[0], 3), 40, np.uint8)).save(folder / f"{name}.png")
    rows = [dict(image=f"{name}.png", prompt=prompt) for name, prompt in zip("abc", PROMPTS)]
    return chosen(folder, [*map(json.dumps, rows), ""])


def test_chosen_pictures(tmp_path):
    """Rounds of the pictures that can be read; a position goes on; the missing one is named once."""
    lines = chosen_pictures.read(pictures(tmp_path))
    assert [line.prompt for line in lines] == PROMPTS
    encode = lambda prompts: ((np.asarray([[len(p)] for p in prompts]),), None)
    make = lambda: chosen_pictures.ChosenLoader(lines, encode, 8, 4, seed=0)
    loader, reports = make(), []
    loader.report = reports.append
    batches = [next(loader) for _ in range(3)]
    assert batches[0].image.shape == (4, 8, 8, 3) and (batches[0].image == 40).all()
    lengths = np.concatenate([batch.ids[0][:, 0] for batch in batches])
    assert set(lengths.tolist()) == {3}  # never "bird", whose picture is missing
    assert len(reports) == 1 and "left out (1 of 3)" in reports[0] and "c.png" in reports[0]
    other = make()
    other.report = reports.append
    other.set_state({**loader.get_state(), "batches": 2})
    np.testing.assert_array_equal(next(other).ids[0], batches[2].ids[0])
    with pytest.raises(DataError, match="other chosen pictures"):
        other.set_state({"batches": 1})
    with pytest.raises(DataError, match="none of the 1 chosen pictures"):
        lost = chosen_pictures.ChosenLoader(lines[2:], encode, 8, 4, seed=0)
        lost.report = reports.append
        next(lost)


def test_bad_lines(tmp_path):
    for lines, message in (
        (["{"], "line 1 is no JSON object"),
        (['{"image": "a.png", "prompt": "cat"}', '{"image": "a.png"}'], 'line 2: expected "image" and "prompt"'),
        ([""], "nothing was chosen"),
    ):
        with pytest.raises(DatasetError, match=message):
            chosen_pictures.read(chosen(tmp_path, lines))
    for path, message in (("", "feedback.chosen: give"), (str(tmp_path / "none"), "cannot be read")):
        with pytest.raises(DatasetError, match=message):
            chosen_pictures.read(path)


def test_the_loss_of_chosen_pictures(tmp_path, pipe):
    """The squared error by hand, from the pipeline's latents and the U-Net; adapters alone have a gradient."""
    whole = config(tmp_path, method="chosen", chosen=pictures(tmp_path), prompt_dropout=0.0)
    learning = ChosenTask(whole, maker.tokenizer(), {"guide": Critic(0), "second": Critic(1), "judge": Critic(2)})
    batch, loss, gradient, _ = gradients(learning, pipe)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 7)
    when, what, _ = jax.random.split(key, 3)
    times = (((jax.random.uniform(when) + np.arange(4) / 4) % 1) * 1000).astype(int)
    of_latents, of_noise = jax.random.split(what)
    model = functional.merge(pipe.graphdef, pipe.params)
    unit = jnp.asarray(batch.image / np.float32(255))
    latents = model.encode(unit, jax.random.normal(of_latents, (4, 8, 8, 4)))
    noise = jax.random.normal(of_noise, latents.shape)
    abar = np.float32(schedulers.alphas_cumprod(pipe.scheduler))[times][:, None, None, None]
    prompts, _ = pipe.conditions(batch.ids, batch.negative_ids, (8, 8))
    predicted = model(np.sqrt(abar) * latents + np.sqrt(1 - abar) * noise, times.astype(np.float32), prompts)
    np.testing.assert_allclose(loss.total, np.square(predicted - noise).mean(), rtol=1e-4)
    kernel = gradient["unet"]["conv_in"]["kernel"]
    assert set(gradient) == {"unet"} and np.asarray(kernel["b"]).any() and not np.asarray(kernel["a"]).any()
