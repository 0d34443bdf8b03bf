"""The augmented-prompt variant against the multi-head network with the same weights, and its training loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rahf.config import Config, LossConfig, TrainConfig
from rahf.core.batch import HEATMAPS, SCORES
from rahf.critic import losses
from rahf.critic.networks import augmented_prompt
from rahf.critic.networks.build import build
from rahf.critic.networks.multi_head import Rahf
from rahf.nn import functional, layers
from rahf.training.step import loss_and_gradients
from tests.helpers.model_maker import AUGMENTED, PLAIN, SMALLEST, SUFFIX_ID, compiled, fake, made, padded, with_garbage

PREFIXES = AUGMENTED.task_ids
TRAINED = dataclasses.replace(SMALLEST, variant="augmented-prompt", task_ids=PREFIXES)


def close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=0, atol=tolerance)


def shared_heads(params):
    """Parameters of a multi-head network all of whose heads are those of the augmented one."""
    heads = {f"heatmap_{name}": params["heatmap_head"] for name in HEATMAPS}
    heads |= {f"score_{name}": params["score_head"] for name in SCORES}
    return {k: v for k, v in params.items() if k not in ("heatmap_head", "score_head")} | heads


def with_prefix(batch, task):
    """The batch with a prefix written into its prompts."""
    prefix = np.tile(np.array(PREFIXES[task], np.int32), (len(batch.text_ids), 1))
    return batch._replace(
        text_ids=np.concatenate([prefix, batch.text_ids], 1),
        text_mask=np.concatenate([prefix > 0, batch.text_mask], 1),
    )


# What it says


def test_each_output_is_that_of_a_network_with_its_prefix():
    params, batch = made(AUGMENTED)[1], fake()
    assert {"heatmap_head", "score_head"} <= params.keys() and "score_overall" not in params
    actual = compiled(AUGMENTED)(params, batch)
    plain = compiled(PLAIN)(shared_heads(params), batch)
    # The sequence has no prefix: its pass is the multi-head network's.
    close(actual[0].sequence, plain[0].sequence)
    close(actual[3].word_probabilities, plain[3].word_probabilities)
    close(actual[2].keyword, plain[2].keyword)
    graphdef, _ = made(PLAIN)

    @jax.jit
    def heads(params, batch):
        model = functional.merge(graphdef, params)
        fused = model.fuse(model.image_tokens(batch.image), batch.text_ids, batch.text_mask)
        return model.heatmap_logits(fused), model.score_logits(fused)

    for task in range(6):
        heatmaps, scores = heads(shared_heads(params), with_prefix(batch, task))
        if task < 2:
            close(actual[0].heatmaps[..., task], heatmaps[..., 0])
        else:
            close(actual[0].scores[:, task - 2], scores[:, 0])
    close(actual[3].scores, jax.nn.sigmoid(actual[0].scores))
    assert np.ptp(actual[0].scores, 1).min() > 1e-3  # or else the prefixes would not matter


@pytest.mark.parametrize("garbage", [False, True])
def test_padding_changes_nothing(garbage):
    run, params, batch = compiled(AUGMENTED), made(AUGMENTED)[1], fake()
    longer = with_garbage(padded(batch)) if garbage else padded(batch)
    expected, actual = run(params, batch), run(params, longer)
    close(actual[0].heatmaps[:3], expected[0].heatmaps, 3e-5)  # values of about -5
    close(actual[0].scores[:3], expected[0].scores)
    close(actual[0].sequence[:3, :11][batch.target_mask], expected[0].sequence[batch.target_mask])
    close(actual[1], expected[1])
    close(actual[3].word_probabilities[:3, :5], expected[3].word_probabilities)


def test_without_prefixes_it_cannot_be_asked():
    graphdef, params = made(dataclasses.replace(AUGMENTED, task_ids=()))
    with pytest.raises(ValueError, match="task_ids has 0 prefixes, expected 6"):
        jax.eval_shape(lambda p, b: functional.merge(graphdef, p)(b), params, fake())


def test_the_image_goes_through_the_tower_once():
    """Seven passes and one pass differ by the fusion stack and the heads alone, and unused passes are not made."""
    from rahf.nn.flops import count_flops

    graphdef, params = functional.abstract(build(AUGMENTED))
    model = lambda p: functional.merge(graphdef, p)
    batch = fake()
    tower = count_flops(lambda p: model(p).image_tokens(batch.image), params)

    def fused(p):
        return model(p).fuse(model(p).image_tokens(batch.image), batch.text_ids, batch.text_mask)

    def one_pass(p, length):
        ids = np.zeros((3, length), np.int32)
        return Rahf.fuse(model(p), np.zeros((3, 4, 16), np.float32), ids, ids > 0).image

    heatmap = count_flops(lambda p: model(p).heatmap_head(np.zeros((3, 2, 2, 16), np.float32)), params)
    passes = count_flops(lambda p: one_pass(p, 9 + 3), params)  # with the longest prefix
    assert count_flops(lambda p: model(p).heatmap_logits(fused(p)), params) == tower + 2 * (passes + heatmap)
    without = count_flops(lambda p: one_pass(p, 9), params)
    memory = lambda p: fused(p).memory
    assert count_flops(memory, params) == tower + without


# Training


def labelled(examples):
    """A batch in which some labels are missing, one of them everywhere."""
    batch = fake(examples)
    scores, maps, words = batch.score_mask.copy(), batch.heatmap_mask.copy(), batch.target_mask.copy()
    scores[0], scores[:, 2], maps[1, 0], words[2] = False, False, False, False
    return batch._replace(
        score_mask=scores, heatmap_mask=maps, target_mask=words, scores=np.where(scores, batch.scores, np.nan)
    )


def training(config, loss_config):
    """Compiled (params, batch, tasks) → loss, parts and gradients, the tasks given instead of drawn."""
    graphdef, _ = made(config)

    def loss(params, batch, tasks):
        outputs = functional.merge(graphdef, params).sample(batch, tasks)
        return losses.sampled(loss_config, outputs, batch, jnp.int32(1), SUFFIX_ID)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


LOSS = LossConfig(2.0, 3.0, 0.5, suffix_weight=2.5, keyword_warmup_steps=4, heatmap_loss="weighted-mse")


def test_the_expected_loss_and_gradient_are_those_of_all_tasks(monkeypatch):
    """Beginning at each of the seven tasks in turn, every example gets every task equally often."""
    monkeypatch.setattr(augmented_prompt, "draw_tasks", lambda tasks, *_: tasks)
    config, batch, params = dataclasses.replace(TRAINED, tasks_per_example=2), labelled(3), made(TRAINED)[1]
    order, run = np.array([2, 0, 1])[:, None], training(config, LOSS)
    each = [run(params, batch, (first + 2 * order + np.arange(2)) % 7) for first in range(7)]
    mean = jax.tree.map(lambda *values: np.mean(values, 0), *each)
    graphdef, _ = made(TRAINED)

    def everything(p):
        return losses.total(LOSS, functional.merge(graphdef, p)(batch), batch, jnp.int32(1), SUFFIX_ID)

    expected = jax.jit(jax.value_and_grad(everything, has_aux=True))(params)
    jax.tree.map(lambda actual, value: close(actual, value, 2e-5), mean[0], expected[0])
    jax.tree.map(lambda actual, value: close(actual, value, 2e-5), mean[1], expected[1])
    assert np.std([total for (total, _), _ in each]) > 0.01  # single draws do differ
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(each))


def test_every_head_sees_only_its_own_tasks():
    """14 examples: two tasks of each kind, so places for 4 heatmaps, 8 scores and 2 sequences."""
    graphdef, params = functional.abstract(build(TRAINED))
    sample = lambda p, b: functional.merge(graphdef, p).sample(b, jax.random.key(0))[:3]
    shapes = jax.eval_shape(sample, params, fake(14))
    assert [leaf.shape for leaf in shapes] == [(4, 16, 16), (8,), (2, 11, 48)]
    shapes = jax.eval_shape(sample, params, fake(8))  # the eighth may be of any kind
    assert [leaf.shape for leaf in shapes] == [(3, 16, 16), (5,), (2, 11, 48)]


class DrawTask:
    """Its loss is 0 and names the key that a step draws with."""

    uses_dropout = uses_base = False

    def __init__(self, seed):
        self.config = Config(train=TrainConfig(seed=seed))

    def prepare_batch(self, batch):
        return batch

    def normalizers(self, batch):
        return None

    def loss(self, model, batch, key, dropout_key, step, normalizers):
        return 0.0 * model.scale[...].sum(), {"key": jax.random.key_data(key)}


def test_a_step_draws_by_seed_and_number():
    graphdef, _ = functional.abstract(lambda: layers.RMSNorm(2))
    drawn = [
        tuple(loss_and_gradients(DrawTask(seed), graphdef, {"scale": jnp.ones(2)}, None, step)[0].parts["key"].tolist())
        for seed, step in ((0, 0), (0, 0), (0, 1), (1, 0))
    ]
    assert drawn[0] == drawn[1] and len(set(drawn)) == 3
