"""CLIP from scratch: the loss by hand, which examples are pairs, a run from prompts to a critic, what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rahf
from data_pipelines import store
from rahf import registry
from rahf.config import Config, DataConfig, LossConfig, OptimizerConfig, TrainConfig
from rahf.core import json_text
from rahf.core.batch import SCORES
from rahf.core.errors import ArgumentError, ConfigError, DataError
from rahf.critic import contrastive, energy
from rahf.critic.networks import build
from rahf.critic.task import CriticTask
from rahf.nn import functional
from tests.helpers.baseline_maker import CLIP, RESNET, clip
from tests.helpers.model_maker import SMALLEST


def learning(model=CLIP, kind="aligned", **train):
    data = DataConfig(batch_size=8, eval_batch_size=8, max_prompt_tokens=12, augment=None, tokenizer="prompts")
    return Config(data=data, model=model, loss=LossConfig(contrastive=kind), train=TrainConfig(**train))


def test_loss_and_recall_by_hand():
    """Examples 0 and 2 have equal prompts, example 3 is padding. So 0 meets 1 alone, 1 meets 0 and 2."""
    similarity = jnp.array([[2.0, 1.0, 9.0, 9.0], [3.0, 2.0, 0.0, 9.0], [9.0, 5.0, 4.0, 9.0], [9.0, 9.0, 9.0, 9.0]])
    ids = jnp.array([[1, 5, 2], [1, 6, 2], [1, 5, 2], [1, 7, 2]])
    actual = contrastive.retrieval(similarity, ids, jnp.array([True, True, True, False]))
    cross_entropy = lambda own, *others: np.log(np.exp([own, *others]).sum()) - own
    image_to_text = [cross_entropy(2, 1), cross_entropy(2, 3, 0), cross_entropy(4, 5)]
    text_to_image = [cross_entropy(2, 3), cross_entropy(2, 1, 5), cross_entropy(4, 0)]
    np.testing.assert_allclose(actual.loss, [*np.mean([image_to_text, text_to_image], 0), 0], rtol=1e-6)
    np.testing.assert_array_equal(actual.image_to_text, [1, 0, 0, 0])
    np.testing.assert_array_equal(actual.text_to_image, [0, 0, 1, 0])
    np.testing.assert_array_equal(actual.recall, [0.5, 0, 0.5, 0])
    gradient = jax.grad(lambda s: contrastive.retrieval(s, ids, jnp.array([True, True, True, False])).loss.sum())
    apart = np.asarray(gradient(similarity))
    assert (apart[0, 2], apart[2, 0]) == (0, 0) and not apart[3].any() and not apart[:, 3].any()
    assert np.isfinite(apart).all() and (np.diagonal(apart)[:3] < 0).all()


def test_the_scale_is_learnt_and_at_most_100():
    model = functional.merge(functional.abstract(build.build(CLIP))[0], functional.init(build.build(CLIP), 0))
    assert float(model.similarity_scale()) == pytest.approx(1 / 0.07)
    model.logit_scale[...] = jnp.float32(7.0)
    assert float(model.similarity_scale()) == pytest.approx(100.0)


def test_which_examples_are_pairs(tiny_data):
    task = contrastive.ContrastiveTask(learning(), None)
    records = store.open_split(tiny_data, "train")
    pairs = task.source(str(tiny_data), "train")
    aligned = [record for record in records if 0 not in record.word_labels]
    assert 0 < len(pairs) == len(aligned) < len(records)
    assert [pairs[i].uid for i in range(len(pairs))] == [record.uid for record in aligned]
    assert len(contrastive.ContrastiveTask(learning(kind="all"), None).source(str(tiny_data), "train")) == len(records)
    record = records[0]
    assert contrastive.is_pair(record._replace(word_labels=None))
    assert contrastive.is_pair(record._replace(word_labels=(1, 1)))
    assert not contrastive.is_pair(record._replace(word_labels=(1, 0)))


def test_a_set_without_pairs(tiny_data, monkeypatch):
    monkeypatch.setattr(contrastive, "is_pair", lambda record: False)
    with pytest.raises(DataError, match="split 'dev': each of 12 prompts .* set loss.contrastive to 'all'"):
        contrastive.ContrastiveTask(learning(), None).source(str(tiny_data), "dev")


def test_a_run_learns_and_is_a_critic(tiny_data, tmp_path):
    """From prompts and pictures alone: the loss falls, the run loads, its alignment is the cosine's."""
    text = dataclasses.replace(CLIP.clip.text, vocab_size=600, eos_token_id=599)
    base = learning(clip(text=text), steps=6, eval_every=6, log_every=3, best_metric="recall/mean")
    config = dataclasses.replace(
        base,
        workdir=str(tmp_path / "run"),
        data=dataclasses.replace(base.data, path=str(tiny_data)),
        optimizer=OptimizerConfig(learning_rate=3e-3, schedule="constant", warmup_steps=1),
    )
    finished = registry.train(config)
    assert set(finished.metrics) == set(contrastive.METRICS)
    i2t, t2i = finished.metrics["recall/image_to_text"], finished.metrics["recall/text_to_image"]
    assert finished.metrics["recall/mean"] == pytest.approx((i2t + t2i) / 2) and 0 <= i2t <= 1
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [row["loss/total"] for row in map(json_text.parse, lines) if "loss/total" in row]
    assert len(losses) == 2 and losses[1] < losses[0]
    critic = rahf.load(tmp_path / "run")
    assert critic.outputs.scores == ("alignment",) and critic.tokenizer.vocab_size == 600
    pixels = np.random.default_rng(0).random((1, 16, 16, 3), np.float32)
    alignment = float(critic.scores(pixels, *critic.tokens("a red star"))[0, SCORES.index("alignment")])
    distance = float(energy.clip_distance(critic, "a red star")(pixels)[0])
    again = contrastive.evaluate(tmp_path / "run", split="dev")
    assert again.metrics == pytest.approx(finished.metrics, rel=1e-5)
    assert distance == pytest.approx(2 * np.arcsin(np.sqrt(1 - alignment)) ** 2, rel=1e-4) and 0 < alignment < 1


def test_only_a_clip_retrieves(tiny_run):
    with pytest.raises(ArgumentError, match="family 'critic'; expected a CLIP"):
        contrastive.evaluate(tiny_run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: dataclasses.replace(c, model=clip(scores="trained")), "model.clip.scores is 'trained'"),
        (lambda c: dataclasses.replace(c, train=TrainConfig(accumulate=2)), "train.accumulate 2 cuts the batch"),
        (lambda c: dataclasses.replace(c, train=TrainConfig(cache_tower=True)), "set train.cache_tower to False"),
        (lambda c: dataclasses.replace(c, data=DataConfig(batch_size=1)), "set data.batch_size to at least 2"),
        (lambda c: dataclasses.replace(c, model=RESNET), "family 'resnet'"),
        (lambda c: dataclasses.replace(c, model=SMALLEST), "family 'critic'"),
    ],
)
def test_what_contradicts_the_loss(tiny_data, tmp_path, change, message):
    config = change(learning())
    named = dataclasses.replace(config.data, path=str(tiny_data), tokenizer="dataset")
    with pytest.raises(ConfigError, match=f"loss.contrastive 'aligned'.*{message}"):
        if config.model is RESNET or config.model is SMALLEST:
            CriticTask(config, None)
        else:
            contrastive.task(dataclasses.replace(config, data=named, workdir=str(tmp_path)))
