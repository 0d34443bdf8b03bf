"""The training step, the state that it carries, and the evaluation step."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from rahf.config import Config, LossConfig, OptimizerConfig
from rahf.critic.evaluation import eval_step
from rahf.critic.networks import build
from rahf.critic.task import CriticTask
from rahf.nn import functional, layers
from rahf.training import state as state_lib
from rahf.training import step as step_lib
from rahf.training.task import Loss
from tests.helpers.model_maker import SMALLEST, SUFFIX_ID, fake, made, padded, with_garbage

LOSS = LossConfig(heatmap_weight=2.0, score_weight=3.0, keyword_weight=0.5)
CONFIG = Config(model=SMALLEST, loss=LOSS, optimizer=OptimizerConfig(ema_decay=0.15))


def flat(tree):
    return functional.flatten(tree)


def norm(tree):
    return sum(np.square(np.asarray(x, np.float64)).sum() for x in jax.tree.leaves(tree)) ** 0.5


# The state


def test_a_run_is_described_without_allocating():
    setup = state_lib.setup(
        CriticTask(Config(optimizer=OptimizerConfig(ema_decay=0.9)), None)
    )  # the network of the paper
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(setup.shapes))
    count = functional.count(setup.shapes.params)
    assert count > 500e6 and functional.count(setup.shapes.ema) == count
    moments = sum(leaf.size for leaf in jax.tree.leaves(setup.shapes.opt_state))
    assert 2 * count <= moments < 2 * count + 9
    assert jax.tree.structure(setup.shapes) == jax.tree.structure(setup.shardings)
    assert setup.mesh.axis_names == ("data", "fsdp", "tensor")


def test_a_fresh_state():
    setup = state_lib.setup(CriticTask(CONFIG, None))
    state = state_lib.create(CriticTask(CONFIG, None), setup)
    assert state.step == 0 and state.step.dtype == np.int32
    params, average = flat(state.params), flat(state.ema)
    wanted = flat(functional.init(build.build(SMALLEST), 0))
    assert params.keys() == average.keys() == wanted.keys()
    for path in wanted:
        np.testing.assert_array_equal(params[path], wanted[path])
        np.testing.assert_array_equal(average[path], wanted[path])
    assert all(flat(state.best_params)[path] is leaf for path, leaf in average.items())
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(state.opt_state))
    found = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), state)
    assert found == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), setup.shapes)


def test_without_averaging_there_is_one_copy():
    state = state_lib.TrainState(jnp.int32(0), {"a": 1}, (), None)
    assert state.best_params is state.params and state.lora is None
    assert (
        state_lib.setup(CriticTask(dataclasses.replace(CONFIG, optimizer=OptimizerConfig()), None)).shapes.ema is None
    )


# The training step, around a loss that can be followed by hand


class Square(nnx.Module):
    """One parameter, w [2]."""

    def __init__(self):
        self.w = layers.parameter(2)


class SquareTask(CriticTask):
    """A loss that can be followed by hand; dropout as the config says."""

    loss_parts = ("half", "double", "step")

    def __init__(self, config):
        super().__init__(config, None)
        self.loss_parts = SquareTask.loss_parts

    def prepare_batch(self, batch):
        return batch

    def normalizers(self, batch):
        return None

    def loss(self, model, batch, key, dropout_key, step, normalizers):
        noise = jax.random.uniform(dropout_key) if dropout_key is not None else 0.0
        total = noise + jnp.square(model.w[...] - batch).sum()
        return Loss(total, {"half": total / 2, "double": 2 * total, "step": step.astype(jnp.float32)})


class SeveralUpdates(SquareTask):
    """The example moves by what w was before the first update."""

    updates_per_batch = 3

    def rollout(self, model, batch):
        return batch + model.w[...]


def steps(config, start, ema, count=3, first=0, task=SquareTask):
    """States after each step and metrics, of plain gradient descent with rate 0.1.

    The loss is noise + (w - example)², the noise drawn from the key of dropout.
    """
    graphdef, _ = functional.abstract(Square)
    setup = types.SimpleNamespace(graphdef=graphdef, optimizer=optax.sgd(0.1), shardings=None)
    step = step_lib.make_train_step(task(config), setup)
    copy = lambda: {"w": jnp.asarray(start, jnp.float32)}
    optimizer_state = setup.optimizer.init(copy())
    state = state_lib.TrainState(jnp.int32(first), copy(), optimizer_state, copy() if ema else None)
    states, metrics = [], []
    for _ in range(count):
        state, found = step(state, jnp.asarray([1.0, 2.0]))
        states.append(jax.device_get(state))
        metrics.append(jax.device_get(found))
    return states, metrics


def test_several_updates_of_a_step():
    """From w [0.5, 0] towards [1.5, 2]: each update takes a fifth of the way that is left."""
    states, metrics = steps(CONFIG, [0.5, 0.0], ema=False, count=1, task=SeveralUpdates)
    left, distances = np.asarray([1.0, 2.0]), 0.8 ** np.arange(4)
    np.testing.assert_allclose(states[0].params["w"], [1.5, 2.0] - left * distances[3], rtol=1e-6)
    assert states[0].step == 1
    np.testing.assert_allclose(metrics[0].total, 5 * np.square(distances[:3]).mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics[0].gradient_norm, 2 * np.sqrt(5) * distances[:3].mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics[0].parameter_norm, np.linalg.norm(states[0].params["w"]), rtol=1e-6)


def test_steps_by_hand():
    config = dataclasses.replace(CONFIG, optimizer=OptimizerConfig(ema_decay=0.15))
    states, metrics = steps(config, [2.0, 0.0], ema=True)
    # The distance from (1, 2) shrinks by 1 - 2 · 0.1 a step.
    for number, (state, found) in enumerate(zip(states, metrics)):
        assert state.step == number + 1
        left, square = 0.8 ** (number + 1), 5 * 0.64**number
        np.testing.assert_allclose(state.params["w"], [1 + left, 2 - 2 * left], rtol=1e-5)
        values = [found.total, *(found.parts[name] for name in SquareTask.loss_parts)]
        np.testing.assert_allclose(values, [square, square / 2, 2 * square, number], rtol=1e-5)
        np.testing.assert_allclose(found.gradient_norm, 2 * square**0.5, rtol=1e-5)
        np.testing.assert_allclose(found.parameter_norm, norm(state.params), rtol=1e-5)
    # The average's decay climbs from 1/10 over 2/11 to its limit.
    average = np.array([2.0, 0.0])
    for state, decay in zip(states, (0.1, 0.15, 0.15)):
        average = decay * average + (1 - decay) * state.params["w"]
        np.testing.assert_allclose(state.ema["w"], average, rtol=1e-5)


def test_the_average_approaches_its_decay_slowly():
    config = dataclasses.replace(CONFIG, optimizer=OptimizerConfig(ema_decay=0.9))
    (late,), _ = steps(config, [2.0, 0.0], ema=True, count=1, first=5)
    wanted = 6 / 15 * np.array([2, 0]) + 9 / 15 * late.params["w"]
    np.testing.assert_allclose(late.ema["w"], wanted, rtol=1e-5)
    (later,), _ = steps(config, [2.0, 0.0], ema=True, count=1, first=1000)
    np.testing.assert_allclose(later.ema["w"], 0.9 * np.array([2, 0]) + 0.1 * later.params["w"], rtol=1e-5)


@pytest.mark.parametrize("part", ["vit", "t5", "heatmap_head", "score_head"])
def test_dropout_keys_come_from_seed_and_step(part):
    model = dataclasses.replace(SMALLEST, **{part: dataclasses.replace(getattr(SMALLEST, part), dropout=0.1)})
    config = dataclasses.replace(CONFIG, model=model, train=dataclasses.replace(CONFIG.train, seed=7))
    _, metrics = steps(config, [1.0, 2.0], ema=False)  # at the minimum, noise alone is left
    draw = lambda number: jax.random.uniform(jax.random.fold_in(jax.random.key(7), number))
    np.testing.assert_allclose([m.total for m in metrics], [draw(n) for n in range(3)], rtol=1e-6)
    _, resumed = steps(config, [1.0, 2.0], ema=False, count=1, first=2)
    assert resumed[0].total == metrics[2].total


def test_without_dropout_there_is_no_key():
    _, metrics = steps(CONFIG, [1.0, 2.0], ema=False, count=1)
    assert metrics[0].total == 0


# The loss of the network


@pytest.fixture(scope="module")
def gradients():
    """(params, batch) → ((loss, parts), gradients), in NumPy."""
    graphdef, _ = made(SMALLEST)
    run = jax.jit(
        lambda params, batch: step_lib.loss_and_gradients(CriticTask(CONFIG, None), graphdef, params, batch, 0)
    )
    return lambda params, batch: jax.device_get(run(params, batch))


def test_gradients_point_uphill(gradients):
    params, batch = made(SMALLEST)[1], fake()
    (loss, parts), gradient = gradients(params, batch)
    np.testing.assert_allclose(loss, 2 * parts["heatmap"] + 3 * parts["score"] + 0.5 * parts["keyword"], rtol=1e-5)
    assert jax.tree.structure(gradient) == jax.tree.structure(params)
    assert all(np.abs(leaf).max() > 0 for leaf in flat(gradient).values())  # everything takes part
    move = lambda size: jax.tree.map(lambda p, g: p + size / norm(gradient) * g, params, gradient)
    slope = (gradients(move(1e-2), batch)[0][0] - gradients(move(-1e-2), batch)[0][0]) / 2e-2
    np.testing.assert_allclose(slope, norm(gradient), rtol=1e-2)


def test_padding_changes_no_gradient(gradients):
    """Neither what stands in padded places, nor a filling example."""
    params, batch = made(SMALLEST)[1], fake()
    masks = ("text_mask", "target_mask", "word_mask", "heatmap_mask", "score_mask", "example_mask")
    for fill in (False, True):
        if fill:
            last = np.arange(3) == 2
            empty = {name: getattr(batch, name).copy() for name in masks}
            for mask in empty.values():
                mask[last] = False
            batch = batch._replace(**empty)
        (loss, parts), wanted = gradients(params, batch)
        (found, found_parts), gradient = gradients(params, with_garbage(batch))
        assert (found, found_parts) == (loss, parts) and np.isfinite(loss)
        for path, leaf in flat(gradient).items():
            np.testing.assert_array_equal(leaf, flat(wanted)[path], err_msg=path)
            assert np.isfinite(leaf).all()


def test_a_dropped_label_teaches_nothing(gradients):
    params, batch = made(SMALLEST)[1], fake()
    score_mask, heatmap_mask = np.ones((3, 4), bool), np.ones((3, 2), bool)
    score_mask[:, 1], heatmap_mask[:, 0] = False, False
    scores = np.where(score_mask, batch.scores, np.float32(np.nan))
    dropped = batch._replace(scores=scores, score_mask=score_mask, heatmap_mask=heatmap_mask)
    (loss, _), gradient = gradients(params, dropped)
    assert np.isfinite(loss) and np.isfinite(norm(gradient))
    assert norm(gradient["score_alignment"]) == norm(gradient["heatmap_implausibility"]) == 0
    for name in ("score_plausibility", "score_overall", "heatmap_misalignment", "decoder", "vit"):
        assert norm(gradient[name]) > 0
    other = batch.heatmaps.copy()
    other[..., 0] = 255 - other[..., 0]
    (same, _), _ = gradients(params, dropped._replace(scores=batch.scores, heatmaps=other))
    assert same == loss
    (_, parts), gradient = gradients(params, dropped._replace(target_mask=np.zeros_like(batch.target_mask)))
    assert parts["keyword"] == 0 and norm(gradient["decoder"]) == norm(gradient["output"]) == 0


# The evaluation step


def test_evaluation_is_example_by_example():
    graphdef, params = made(SMALLEST)
    batch = padded(fake(), 0, 0, 0, examples=1)
    evaluate = eval_step.make_eval_step(graphdef, CONFIG, SUFFIX_ID, generate=True)
    found = jax.device_get(evaluate(params, batch))
    assert all(part.shape == (4,) and part[3] == 0 for part in found.parts)
    maps, true = found.prediction.heatmaps[:3], fake().heatmaps / 255
    np.testing.assert_allclose(found.parts.heatmap[:3], np.square(maps - true).mean((1, 2, 3)), rtol=1e-4)
    scores = np.square(found.prediction.scores[:3] - fake().scores).mean(1)
    np.testing.assert_allclose(found.parts.score[:3], scores, rtol=1e-4)
    assert found.prediction.word_probabilities.shape == (4, 5)

    @jax.jit
    def sequences(params, batch):
        model = functional.merge(graphdef, params)
        fused = model.fuse(model.image_tokens(batch.image), batch.text_ids, batch.text_mask)
        return jax.nn.log_softmax(model.sequence_logits(fused, batch.target_ids))

    log_p = np.asarray(sequences(params, batch))
    for i, (ids, mask) in enumerate(zip(fake().target_ids, fake().target_mask)):
        wanted = -np.mean([log_p[i, t, ids[t]] for t in np.flatnonzero(mask)])
        np.testing.assert_allclose(found.parts.keyword[i], wanted, rtol=1e-4)
    assert found.generated.shape == (4, 11)
    np.testing.assert_array_equal(found.generated[:, 0], log_p[:, 0].argmax(-1))  # nothing precedes the first
    without = eval_step.make_eval_step(graphdef, CONFIG, SUFFIX_ID, generate=False)
    assert jax.eval_shape(without, params, batch).generated is None
