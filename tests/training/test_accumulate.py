"""A batch in parts gives the loss and the gradient of the whole batch, whatever labels each part has."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rahf.config import Config, DataConfig, LossConfig, MeshConfig, TrainConfig
from rahf.core.errors import ConfigError
from rahf.critic.task import CriticTask
from rahf.nn import functional
from rahf.training import accumulate, step
from tests.helpers.model_maker import SMALLEST, SUFFIX_ID, fake, made

LOSS = LossConfig(heatmap_weight=2.0, score_weight=3.0, keyword_weight=0.5, suffix_weight=2.5, tag_weight=1.5)
TAGGED = dataclasses.replace(SMALLEST, tag_head=True)


def config(parts, size=4, **mesh):
    data = DataConfig(batch_size=size)
    return Config(model=TAGGED, data=data, loss=LOSS, train=TrainConfig(accumulate=parts), mesh=MeshConfig(**mesh))


def task(config):
    """The task with the first piece of the suffix, but without a vocabulary."""
    critic_task = CriticTask(config, None)
    critic_task.suffix_id = SUFFIX_ID
    return critic_task


def uneven():
    """Four examples: a label that one part lacks wholly, one that all lack, one example without any, odd lengths."""
    batch = fake(4)
    scores, heatmaps = np.ones((4, 4), bool), np.ones((4, 2), bool)
    scores[[0, 2], 0] = False  # part 0 of 2 holds examples 0 and 2
    scores[:, 3] = False
    scores[1:, 1] = False
    heatmaps[[1, 3, 2], 0] = False
    target, example = batch.target_mask.copy(), batch.example_mask.copy()
    scores[3], heatmaps[3], target[3], example[3] = False, False, False, False
    target[0, 2:] = False
    words = batch.word_mask.copy()
    words[3] = False
    masks = dict(score_mask=scores, heatmap_mask=heatmaps, target_mask=target, word_mask=words)
    return batch._replace(example_mask=example, **masks)


def test_parts_equal_the_whole():
    graphdef, params = made(TAGGED)

    def run(parts):
        one = lambda params, batch: step.loss_and_gradients(  # noqa: E731
            task(config(parts)), graphdef, params, batch, 0
        )
        return jax.device_get(jax.jit(one)(params, uneven()))

    (loss, losses), gradients = run(1)
    for parts in (2, 4):
        (found, found_losses), found_gradients = run(parts)
        np.testing.assert_allclose([found, *found_losses.values()], [loss, *losses.values()], rtol=1e-5)
        wanted = functional.flatten(gradients)
        for path, leaf in functional.flatten(found_gradients).items():
            least = 1e-5 * np.abs(wanted[path]).max() + 1e-7
            np.testing.assert_allclose(leaf, wanted[path], rtol=1e-5, atol=least, err_msg=path)
    assert min(losses.values()) > 0.01


def test_a_mean_of_means_would_be_another_loss():
    """That the test above can fail."""
    graphdef, params = made(TAGGED)
    one = jax.jit(lambda b: step.loss_and_gradients(task(config(1)), graphdef, params, b, 0)[0][1])
    halves = [one(jax.tree.map(lambda x, s=s: x[s::2], uneven())) for s in (0, 1)]
    whole = one(uneven())
    assert all(abs((a + b) / 2 - c) > 1e-4 * c for a, b, c in zip(*(part.values() for part in (*halves, whole))))


def test_which_examples_go_together():
    found = jax.jit(lambda x: accumulate.summed(lambda part, number: part[:, 0] * 10**number, x, 3))
    np.testing.assert_array_equal(found(jnp.arange(6.0)[:, None]), [0 + 10 + 200, 3 + 40 + 500])


def test_parts_draw_different_dropout():
    model = dataclasses.replace(SMALLEST, t5=dataclasses.replace(SMALLEST.t5, dropout=0.5))
    graphdef, params = made(model)
    twice = jax.tree.map(lambda x: np.stack([x[0], x[0]]), fake(1))
    plain = Config(model=model, data=DataConfig(batch_size=2), train=TrainConfig(accumulate=2))
    critic_task, key = CriticTask(plain, None), jax.random.fold_in(jax.random.key(plain.train.seed), 0)
    single, params = jax.tree.map(lambda x: jnp.asarray(x[:1]), twice), jax.tree.map(jnp.asarray, params)

    def alone(number):
        normalizers = critic_task.normalizers(single)
        network, dropout_key = functional.merge(graphdef, params), jax.random.fold_in(key, number)
        return critic_task.loss(network, single, key, dropout_key, jnp.int32(0), normalizers).total

    losses = [float(jax.jit(alone)(number)) for number in (0, 1)]
    assert abs(losses[0] - losses[1]) > 1e-3
    together = jax.jit(lambda batch: step.loss_and_gradients(critic_task, graphdef, params, batch, 0)[0].total)(twice)
    np.testing.assert_allclose(together, np.mean(losses), rtol=1e-5)


@pytest.mark.parametrize(
    ("given", "devices", "message"),
    [
        (config(3), 1, "train.accumulate 3: expected a divisor of data.batch_size, 4"),
        (config(0), 1, "train.accumulate 0: expected a divisor"),
        (config(2), 4, "parts of 2 examples cannot be shared by the 4 devices"),
    ],
)
def test_impossible_parts(given, devices, message):
    with pytest.raises(ConfigError, match=message):
        accumulate.check(given, devices)
    accumulate.check(config(2, 8, data=2, fsdp=2), 4)
    accumulate.check(config(1, 4, data=1, tensor=8), 8)
