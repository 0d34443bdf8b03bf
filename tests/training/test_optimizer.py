"""AdamW by hand: schedule, mask of weight decay, clipping."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rahf.config import Config, OptimizerConfig
from rahf.critic.networks import build
from rahf.critic.task import CriticTask, is_t5_query
from rahf.nn import functional
from rahf.training import optimizer
from tests.helpers.model_maker import OTHER, PLAIN

PAPER = OptimizerConfig(learning_rate=0.015, schedule="rsqrt", warmup_steps=2000)


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 0.0), (1000, 0.0075), (2000, 0.015), (5000, 0.00949), (20_000, 0.00474)]
)
def test_schedule_of_the_paper(step, rate):
    assert float(optimizer.schedule(PAPER, 20_000)(step)) == pytest.approx(rate, abs=5e-6)


def test_schedule_does_not_depend_on_the_length_of_the_run():
    for kind in ("rsqrt", "constant"):
        config = OptimizerConfig(schedule=kind)
        steps = np.arange(0, 9000, 500)
        short, long = optimizer.schedule(config, 100), optimizer.schedule(config, 9000)
        np.testing.assert_array_equal(short(steps), long(steps))


def test_cosine_by_hand():
    config = OptimizerConfig(learning_rate=2.0, schedule="cosine", warmup_steps=100, final_fraction=0.1)
    found = optimizer.schedule(config, 300)(np.array([0, 50, 100, 150, 200, 300, 400]))
    quarter = 0.1 + 0.9 * (1 + np.cos(np.pi / 4)) / 2
    np.testing.assert_allclose(found, np.array([0, 0.5, 1, quarter, 0.55, 0.1, 0.1]) * 2, rtol=1e-5)


def test_constant_and_no_warmup():
    config = OptimizerConfig(learning_rate=3.0, schedule="constant", warmup_steps=4)
    np.testing.assert_allclose(optimizer.schedule(config, 9)(np.array([1, 3, 4, 1000])), [0.75, 2.25, 3, 3])
    for kind in ("rsqrt", "cosine", "constant"):
        config = OptimizerConfig(learning_rate=3.0, schedule=kind, warmup_steps=0)
        assert float(optimizer.schedule(config, 10**6)(1)) == pytest.approx(3.0)


def test_rsqrt_without_warmup_does_not_fall_at_once():
    rate = optimizer.schedule(OptimizerConfig(learning_rate=3.0, schedule="rsqrt", warmup_steps=0), 10**6)
    np.testing.assert_allclose(rate(np.array([1, 2, 100, 2000, 8000])), [3, 3, 3, 3, 1.5], rtol=1e-6)


@pytest.mark.parametrize("config", [PLAIN, OTHER])
def test_what_decays(config):
    _, params = functional.abstract(build.build(config))
    mask = functional.flatten(optimizer.decay_mask(params))
    assert mask.keys() == functional.flatten(params).keys()
    for path, decays in mask.items():
        name = path.rsplit("/", 1)[-1]
        assert decays == (name in ("kernel", "output")), path
    tables = ("embedding", "vit/position", "encoder/relative_bias/table")
    for path in (*tables, "vit/embed/bias", "decoder/norm/scale"):
        assert mask[path] is False
    assert mask["vit/embed/kernel"] and mask["heatmap_misalignment/up_0/up/kernel"]
    assert mask.get("vit/class_token", False) is False and mask.get("output", True)


#: A slower tower beside the steps of T5's query kernels.
SLOWER_TOWER = 0.25
#: As a run of such a critic asks for.
OF_CRITIC = CriticTask(Config(model=dataclasses.replace(PLAIN, tower_rate=SLOWER_TOWER)), None).step_factor


def by_hand(params, gradients, config, rates):
    """AdamW with decoupled decay (Loshchilov & Hutter 2019) after clipping, on a flat tree."""
    params = {k: v.astype(np.float64) for k, v in params.items()}
    m, v = ({k: 0.0 for k in params} for _ in range(2))
    for t, (gradient, rate) in enumerate(zip(gradients, rates), 1):
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradient.values()))
        factor = min(1.0, config.clip_norm / norm) if config.clip_norm else 1.0
        for k, g in gradient.items():
            m[k] = config.b1 * m[k] + (1 - config.b1) * factor * g
            v[k] = config.b2 * v[k] + (1 - config.b2) * (factor * g) ** 2
            step = (m[k] / (1 - config.b1**t)) / (np.sqrt(v[k] / (1 - config.b2**t)) + config.eps)
            if k == "encoder/query/kernel":
                step = step / PLAIN.t5.head_width**0.5  # the scale of T5's attention lies in the kernel
            if k.startswith("vit/"):
                step = SLOWER_TOWER * step
            decay = config.weight_decay if k.endswith("kernel") else 0.0
            params[k] = params[k] - rate * (step + decay * params[k])
    return params


SHAPES = {"encoder/query/kernel": (3, 2), "vit/query/kernel": (2, 3), "vit/query/bias": (3,)}


@pytest.mark.parametrize("clip", [0.0, 0.5, 100.0])
def test_steps_by_hand(clip):
    # A large eps, or else Adam would hide the size of a gradient and so its clipping.
    adam = dict(weight_decay=0.3, b1=0.8, b2=0.9, eps=0.5)
    config = OptimizerConfig(learning_rate=0.1, schedule="constant", warmup_steps=2, clip_norm=clip, **adam)
    stream = np.random.default_rng(0)
    draw = lambda: {k: stream.standard_normal(shape, np.float32) for k, shape in SHAPES.items()}
    params, gradients = draw(), [draw() for _ in range(3)]
    make = optimizer.make(config, 3, OF_CRITIC)

    @jax.jit
    def update(params, state, gradient):
        updates, state = make.update(gradient, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    found = functional.unflatten(params)
    state = make.init(found)
    for gradient in gradients:
        found, state = update(found, state, functional.unflatten(gradient))
    wanted = by_hand(params, gradients, config, [0.05, 0.1, 0.1])  # the first step already learns
    for name, value in functional.flatten(found).items():
        np.testing.assert_allclose(value, wanted[name], rtol=1e-5)
        assert value.dtype == jnp.float32
    other = by_hand(params, gradients, dataclasses.replace(config, clip_norm=0.0), [0.05, 0.1, 0.1])
    unclipped = all(np.allclose(other[name], wanted[name], rtol=1e-4) for name in SHAPES)
    assert unclipped == (clip != 0.5)  # 0.5 clips, 100 does not


def test_t5_queries_are_found():
    for config in (PLAIN, OTHER):
        _, params = functional.abstract(build.build(config))
        found = {path for path in functional.flatten(params) if is_t5_query(path)}
        each = [("encoder", "attention"), ("decoder", "attention"), ("decoder", "cross")]
        assert found == {f"{stack}/layer_{i}/{kind}/query/kernel" for stack, kind in each for i in range(2)}


def test_adafactor_by_hand():
    """Shazeer & Stern 2018, algorithm 4 without momentum: factored moments, clipped and relative steps."""
    config = OptimizerConfig(
        kind="adafactor", learning_rate=0.5, schedule="constant", warmup_steps=0, clip_norm=0.0, weight_decay=0.0
    )
    stream = np.random.default_rng(0)
    params = {"a/kernel": stream.standard_normal((130, 128)), "b/bias": stream.standard_normal(5)}
    draw = lambda: {
        k: stream.standard_normal(v.shape) * 10 ** stream.uniform(-2, 1, v.shape) for k, v in params.items()
    }
    gradients = [draw() for _ in range(3)]
    make = optimizer.make(config, 3, OF_CRITIC)
    found = functional.unflatten({k: jnp.asarray(v, jnp.float32) for k, v in params.items()})
    state = make.init(found)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 300  # 130 + 128 + 5 and a few scalars
    for gradient in gradients:
        given = functional.unflatten({k: jnp.asarray(v, jnp.float32) for k, v in gradient.items()})
        updates, state = jax.jit(make.update)(given, state, found)
        found = jax.tree.map(jnp.add, found, updates)
    rows, columns, full = np.zeros(130), np.zeros(128), np.zeros(5)
    for t, gradient in enumerate(gradients, 1):
        keep = 1.0 - t**-0.8
        square = gradient["a/kernel"] ** 2 + 1e-30
        rows = keep * rows + (1 - keep) * square.mean(1)
        columns = keep * columns + (1 - keep) * square.mean(0)
        full = keep * full + (1 - keep) * (gradient["b/bias"] ** 2 + 1e-30)
        second = {"a/kernel": rows[:, None] * columns / rows.mean(), "b/bias": full}
        for name, v in second.items():
            u = gradient[name] / np.sqrt(v)
            u = u / max(1.0, np.sqrt((u**2).mean()))
            params[name] = params[name] - 0.5 * max(1e-3, np.sqrt((params[name] ** 2).mean())) * u
    for name, value in functional.flatten(found).items():
        np.testing.assert_allclose(value, params[name], rtol=2e-4, atol=2e-5)
