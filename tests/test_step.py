"""The training step, the state that it carries, and the evaluation step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_maker import SMALLEST, SUFFIX_ID, compiled, fake, made, padded, with_garbage

from rahf.config import Config, LossConfig, OptimizerConfig
from rahf.models import functional
from rahf.models import rahf as model_lib
from rahf.train import state as state_lib
from rahf.train import step as step_lib

OPTIMIZER = OptimizerConfig(
    learning_rate=3e-3, warmup_steps=2, schedule="constant", weight_decay=0.1, clip_norm=0.5, ema_decay=0.15
)
CONFIG = Config(
    model=dataclasses.replace(SMALLEST, vit=dataclasses.replace(SMALLEST.vit, dropout=0.1)),
    loss=LossConfig(heatmap_weight=2.0, score_weight=3.0, keyword_weight=0.5),
    optimizer=OPTIMIZER,
)
STEPS = 16


@pytest.fixture(scope="module")
def setup():
    return state_lib.setup(CONFIG)


@pytest.fixture(scope="module")
def step(setup):
    return step_lib.make_train_step(CONFIG, setup)


@pytest.fixture(scope="module")
def trained(setup, step):
    """States and metrics of some steps on one batch, copied, since a step gives its state away."""
    state, states, metrics = state_lib.create(CONFIG, setup), [], []
    for _ in range(STEPS):
        states.append(jax.tree.map(np.array, state))
        state, found = step(state, fake())
        metrics.append(jax.device_get(found))
    return [*states, jax.device_get(state)], metrics


@pytest.fixture(scope="module")
def gradients():
    """(params, batch, key=None) → ((loss, parts), gradients), in NumPy."""
    graphdef, _ = made(CONFIG.model)
    run = jax.jit(lambda *inputs: step_lib.loss_and_gradients(graphdef, CONFIG, *inputs))
    return lambda params, batch, key=None: jax.device_get(run(params, batch, key))


def flat(tree):
    return functional.flatten(tree)


def norm(tree):
    return sum(np.square(np.asarray(x, np.float64)).sum() for x in jax.tree.leaves(tree)) ** 0.5


# The state


def test_a_run_is_described_without_allocating():
    setup = state_lib.setup(Config(optimizer=OptimizerConfig(ema_decay=0.9)))  # the network of the paper
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(setup.shapes))
    count = functional.count(setup.shapes.params)
    assert count > 500e6 and functional.count(setup.shapes.ema) == count
    assert sum(leaf.size for leaf in jax.tree.leaves(setup.shapes.opt_state)) == pytest.approx(2 * count, abs=9)
    assert jax.tree.structure(setup.shapes) == jax.tree.structure(setup.shardings)
    assert setup.mesh.axis_names == ("data", "fsdp", "tensor")


def test_a_fresh_state(trained):
    first = trained[0][0]
    assert first.step == 0 and first.step.dtype == np.int32
    wanted = flat(functional.init(model_lib.build(CONFIG.model), CONFIG.train.seed))
    assert flat(first.params).keys() == wanted.keys()
    for path, leaf in flat(first.params).items():
        np.testing.assert_array_equal(leaf, wanted[path])
        np.testing.assert_array_equal(flat(first.ema)[path], leaf)
    assert first.best_params is first.ema
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(first.opt_state))


def test_without_averaging_there_is_one_copy():
    config = dataclasses.replace(CONFIG, optimizer=dataclasses.replace(OPTIMIZER, ema_decay=0.0))
    state = state_lib.create(config, state_lib.setup(config))
    assert state.ema is None and state.best_params is state.params


# The training step


def test_one_step_by_hand(trained, gradients):
    (first, second, *_), metrics = trained
    key = jax.random.fold_in(jax.random.key(CONFIG.train.seed), 0)
    (loss, parts), gradient = gradients(first.params, fake(), key)
    np.testing.assert_allclose(metrics[0].total, loss, rtol=1e-5)
    np.testing.assert_allclose(metrics[0].parts, parts, rtol=1e-5)
    assert loss == pytest.approx(2 * parts.heatmap + 3 * parts.score + 0.5 * parts.keyword, rel=1e-5)
    assert metrics[0].gradient_norm == pytest.approx(norm(gradient), rel=1e-4)
    assert metrics[0].parameter_norm == pytest.approx(norm(second.params), rel=1e-5)
    assert second.step == 1
    factor = min(1.0, 0.5 / norm(gradient))
    assert factor < 1
    for path, leaf in flat(second.params).items():
        g, old = factor * np.asarray(flat(gradient)[path]), flat(first.params)[path]
        update = g / (np.abs(g) + OPTIMIZER.eps)  # Adam's first step
        if path.split("/")[0] in ("encoder", "decoder") and path.endswith("query/kernel"):
            update = update / SMALLEST.t5.head_width**0.5
        decays = path.rsplit("/", 1)[-1] in ("kernel", "output")
        wanted = old - 0.5 * OPTIMIZER.learning_rate * (update + (0.1 * old if decays else 0))  # warm-up: 1 of 2
        steady = np.abs(g) > 1e-6  # where the gradient is nothing but rounding, so is its direction
        np.testing.assert_allclose(leaf[steady], wanted[steady], atol=2e-5, err_msg=path)
        assert steady.mean() > 0.3 or path in ("embedding", "encoder/relative_bias/table", "decoder/relative_bias/table")


def test_the_average_forgets_its_start(trained):
    states, _ = trained
    path = "vit/embed/kernel"
    average = flat(states[0].params)[path].astype(np.float64)
    for number, state in enumerate(states[1:]):
        decay = min(0.15, (1 + number) / (10 + number))  # 0.1, then 0.15
        average = decay * average + (1 - decay) * flat(state.params)[path]
        np.testing.assert_allclose(flat(state.ema)[path], average, atol=1e-6)
    assert np.abs(flat(states[-1].ema)[path] - flat(states[-1].params)[path]).max() > 1e-5


def test_steps_learn(trained):
    _, metrics = trained
    assert metrics[-1].total < 0.8 * metrics[0].total
    assert metrics[-1].parts.keyword < metrics[0].parts.keyword
    assert all(np.isfinite(leaf) for m in metrics for leaf in jax.tree.leaves(m))


def test_a_step_depends_on_its_state_alone(trained, setup, step):
    """A resumed run draws the dropout that the undisturbed one would have drawn."""
    states, metrics = trained
    state, found = step(jax.device_put(states[5], setup.shardings), fake())
    assert jax.tree.all(jax.tree.map(np.array_equal, jax.device_get((state, found)), (states[6], metrics[5])))
    _, other = step(jax.device_put(states[5]._replace(step=np.int32(6)), setup.shardings), fake())
    assert float(other.total) != float(found.total)


# Masks


def test_padding_changes_no_gradient(gradients):
    params, batch = made(CONFIG.model)[1], fake()
    (loss, parts), wanted = gradients(params, batch)
    for longer in (padded(batch), with_garbage(padded(batch))):
        (found, found_parts), gradient = gradients(params, longer)
        np.testing.assert_allclose([found, *found_parts], [loss, *parts], atol=1e-5)
        for path, leaf in flat(gradient).items():
            np.testing.assert_allclose(leaf, flat(wanted)[path], atol=1e-5 * max(1, norm(wanted)), err_msg=path)


def test_a_dropped_label_teaches_nothing(gradients):
    params, batch = made(CONFIG.model)[1], fake()
    score_mask, heatmap_mask = np.ones((3, 4), bool), np.ones((3, 2), bool)
    score_mask[:, 1], heatmap_mask[:, 0] = False, False
    scores = np.where(score_mask, batch.scores, np.float32(np.nan))
    dropped = batch._replace(scores=scores, score_mask=score_mask, heatmap_mask=heatmap_mask)
    (loss, _), gradient = gradients(params, dropped)
    (same, _), _ = gradients(params, dropped._replace(scores=batch.scores, heatmaps=255 - batch.heatmaps * heatmap_mask[:, None, None]))
    assert np.isfinite(loss) and np.isfinite(norm(gradient))
    assert norm(gradient["score_alignment"]) == norm(gradient["heatmap_implausibility"]) == 0
    for name in ("score_plausibility", "score_overall", "heatmap_misalignment", "decoder", "vit"):
        assert norm(gradient[name]) > 0
    silent = dropped._replace(target_mask=np.zeros_like(batch.target_mask))
    (_, parts), gradient = gradients(params, silent)
    assert parts.keyword == 0 and norm(gradient["decoder"]) == norm(gradient["output"]) == 0


# The evaluation step


def test_evaluation_is_example_by_example():
    graphdef, params = made(CONFIG.model)
    batch = padded(fake(), 0, 0, 0, examples=1)
    evaluate = step_lib.make_eval_step(graphdef, CONFIG, SUFFIX_ID, generate=True)
    found = jax.device_get(evaluate(params, batch))
    _, _, parts, prediction = compiled(CONFIG.model)(params, fake())
    for ours, wanted in zip(found.prediction, prediction):
        np.testing.assert_allclose(ours[:3], wanted, atol=1e-5)
    assert all(part.shape == (4,) and part[3] == 0 for part in found.parts)
    np.testing.assert_allclose(found.parts.heatmap[:3].mean(), parts.heatmap, rtol=1e-4)
    np.testing.assert_allclose(found.parts.score[:3].mean(), parts.score, rtol=1e-4)
    tokens = fake().target_mask.sum(1)
    np.testing.assert_allclose((found.parts.keyword[:3] * tokens).sum() / tokens.sum(), parts.keyword, rtol=1e-4)
    assert found.generated.shape == (4, 11) and found.generated.dtype == np.int32
    without = step_lib.make_eval_step(graphdef, CONFIG, SUFFIX_ID, generate=False)
    assert jax.eval_shape(without, params, batch).generated is None
