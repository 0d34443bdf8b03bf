"""Training a part of a network, or low-rank adapters: what moves, what is stored, and what is handed out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rahf.config import Config, DataConfig, LoraConfig, OptimizerConfig
from rahf.core.errors import ConfigError
from rahf.critic.networks import multi_head
from rahf.critic.task import CriticTask
from rahf.nn import functional
from rahf.training import checkpoint, sharding, trainable
from rahf.training import state as state_lib
from rahf.training import step as step_lib
from tests.helpers.model_maker import SMALLEST, fake

PATHS = ["decoder/norm/scale", "heatmap_a/up_0/up/kernel", "heatmap_b/out/bias", "vit/layer_0/query/kernel"]
LORA = LoraConfig(rank=2, alpha=6.0, patterns=("*/query/kernel",))


def config(**fields):
    optimizer = OptimizerConfig(learning_rate=0.01, schedule="constant", warmup_steps=0, **fields)
    return Config(model=SMALLEST, data=DataConfig(batch_size=3), optimizer=optimizer)


def flat(tree):
    return {path: np.asarray(leaf) for path, leaf in functional.flatten(tree).items()}


def test_patterns():
    choose = lambda *patterns: trainable.matching_paths(PATHS, patterns, "field")  # noqa: E731
    assert choose("heatmap_*") == PATHS[1:3]
    assert choose("*/kernel", "decoder") == [PATHS[0], PATHS[1], PATHS[3]]
    assert choose("vit/layer_0") == PATHS[3:] and choose(PATHS[2]) == [PATHS[2]] and choose() == []
    with pytest.raises(ConfigError, match="field: no parameter is called 'heatmp_a'. Did you mean 'heatmap_a'"):
        choose("decoder", "heatmp_a")
    with pytest.raises(ConfigError, match="norm/scale has shape .* only matrices and convolutions are adapted"):
        state_lib.setup(CriticTask(config(lora=LoraConfig(rank=1, patterns=("vit/norm/scale",))), None))


def test_adapters_of_a_convolution():
    kernel = np.random.default_rng(0).standard_normal((3, 3, 4, 5)).astype(np.float32)
    settings = config(lora=LoraConfig(rank=2, patterns=("conv/kernel",))).optimizer
    shapes = trainable.abstract_lora(settings, {"conv": {"kernel": kernel}})["adapters"]["conv"]["kernel"]
    assert shapes["a"].shape == (3, 3, 4, 2) and shapes["b"].shape == (2, 5)
    a, b = np.ones((3, 3, 4, 2), np.float32), np.full((2, 5), 0.5, np.float32)
    lora = {"scale": 3.0, "adapters": {"conv": {"kernel": {"a": a, "b": b}}}}
    np.testing.assert_allclose(trainable.merged({"conv": {"kernel": kernel}}, lora)["conv"]["kernel"], kernel + 3.0)


def stepped(settings, count=2):
    setup = state_lib.setup(CriticTask(settings, None))
    start, before = (
        state_lib.create(CriticTask(settings, None), setup),
        jax.device_get(state_lib.create(CriticTask(settings, None), setup)),
    )
    step, state = step_lib.make_train_step(CriticTask(settings, None), setup), start
    batch = sharding.to_devices(fake(), setup.mesh)
    with jax.transfer_guard("disallow"):  # a step moves nothing between host and device
        for _ in range(count):
            state, metrics = step(state, batch)
    # Donated; what is frozen is handed on as it is.
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((start.opt_state, start.ema)))
    return setup, before, state, jax.device_get(metrics)


@pytest.fixture(scope="module")
def frozen():
    return stepped(config(trainable=("score_overall", "vit/norm/*"), ema_decay=0.9))


@pytest.fixture(scope="module")
def adapted():
    return stepped(config(trainable=("score_*",), lora=LORA, ema_decay=0.9))


def test_only_chosen_parameters_move(frozen):
    _, before, state, metrics = frozen
    old, new = flat(before.params), flat(state.params)
    moved = {path for path in old if (old[path] != new[path]).any()}
    assert moved == {path for path in old if path.startswith(("score_overall/", "vit/norm/"))}
    chosen = sum(old[path].size for path in moved)
    held = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert held == 2 * chosen  # two moments each
    assert functional.count(state.ema) == chosen and np.isfinite(metrics.total)
    best = flat(state.best_params)
    assert best.keys() == old.keys()
    for path, leaf in best.items():
        np.testing.assert_array_equal(leaf, flat(state.ema)[path] if path in moved else old[path], err_msg=path)


def test_adapters_start_as_nothing_and_are_trained(adapted):
    _, before, state, _ = adapted
    old, new, lora = flat(before.params), flat(state.params), flat(state.lora["adapters"])
    assert {path for path in old if (old[path] != new[path]).any()} == {p for p in old if p.startswith("score_")}
    queries = [path for path in old if path.endswith("/query/kernel")]
    assert lora.keys() == {f"{path}/{name}" for path in queries for name in "ab"} and len(queries) == 4
    assert not any(leaf.any() for path, leaf in flat(before.lora["adapters"]).items() if path.endswith("/b"))
    for path in queries:
        assert lora[path + "/a"].shape == (old[path].shape[0], 2) and lora[path + "/b"].any()
        np.testing.assert_allclose(
            flat(trainable.merged(state.params, state.lora))[path],
            old[path] + 3.0 * lora[path + "/a"] @ lora[path + "/b"],
            rtol=1e-6,
            atol=1e-6,
        )
    held = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    scores = sum(leaf.size for path, leaf in old.items() if path.startswith("score_"))
    assert held == 2 * (scores + sum(leaf.size for leaf in lora.values()))


def test_averaged_adapters_are_merged(adapted):
    _, before, state, _ = adapted
    path, average = "vit/layer_0/query/kernel", flat(state.ema["lora"])
    wanted = flat(before.params)[path] + 3.0 * average[path + "/a"] @ average[path + "/b"]
    np.testing.assert_allclose(flat(state.best_params)[path], wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("which", ["frozen", "adapted"])
def test_checkpoints(which, request, tmp_path):
    """Resumed exactly; the newest as well as the best reads as an ordinary network."""
    setup, _, state, _ = request.getfixturevalue(which)
    checkpoints = checkpoint.Checkpointer(tmp_path, keep=1)
    checkpoints.save(state, {"examples": 6})
    checkpoints.save_best(2, state.best_params, {"loss/total": 1.0})
    checkpoints.wait()
    restored, position = checkpoints.restore(setup.shapes)
    checkpoints.close()
    assert position == {"examples": 6} and jax.tree.structure(restored) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state)):
        np.testing.assert_array_equal(a, b)
    (tmp_path / "config.json").write_text("{}")
    wanted = flat(state.best_params)
    for kind in ("latest", "best"):
        folder = tmp_path / "checkpoints" / kind / "2" / "state"
        found = flat(checkpoint.load_params(folder, setup.shapes.params))
        assert found.keys() == wanted.keys()
        for path, leaf in found.items():
            np.testing.assert_array_equal(leaf, wanted[path], err_msg=f"{kind} {path}")


def test_frozen_towers_cost_no_gradient():
    """With the image tower frozen nothing of it is differentiated."""
    graphdef, params = functional.abstract(lambda: multi_head.Rahf(SMALLEST))

    def products(settings):
        def run(params):
            trained = trainable.trained(settings.optimizer, params, None)
            merge = lambda tree: trainable.replaced(params, None, tree)[0]  # noqa: E731
            return step_lib.loss_and_gradients(CriticTask(settings, None), graphdef, trained, fake(), 0, merge)[1]

        from rahf.nn.flops import count_flops

        return count_flops(run, params)

    everything, heads = products(config()), products(config(trainable=("score_*",)))
    assert heads < 0.6 * everything


def test_without_a_choice_everything_is_trained():
    params = {"a": {"kernel": jnp.ones((2, 2))}}
    assert trainable.trained(OptimizerConfig(), params, None) is params
    assert trainable.merged_params(params, None, None) is params
    average = {"a": {"kernel": jnp.zeros((2, 2))}}
    assert trainable.merged_params(params, average, None)["a"]["kernel"] is average["a"]["kernel"]
    assert not trainable.is_part({"params": params, "ema": average})
    assert trainable.is_part({"params": params, "ema": {}, "lora": {"scale": 1}})
    assert dataclasses.replace(OptimizerConfig(), lora=LORA).trainable == ()
