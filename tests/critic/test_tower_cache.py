"""A frozen tower's outputs on disk stand for images; they are computed once, and anew when anything changes."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from rahf import config as config_lib
from rahf.config import AugmentConfig, LoraConfig, OptimizerConfig
from rahf.core.errors import ConfigError
from rahf.critic import tower_cache
from rahf.critic.task import CriticTask
from rahf.nn import functional

FROZEN = ("heatmap_*", "score_*", "encoder", "decoder", "embedding", "output", "projection")


@pytest.fixture(scope="module")
def config(tiny_config, tmp_path_factory):
    """A run that trains all but its tower, on the tiny data."""
    plain = config_lib.load(str(tiny_config))
    vit = dataclasses.replace(plain.model.vit, dropout=0.0)
    return dataclasses.replace(
        plain,
        workdir=str(tmp_path_factory.mktemp("cached") / "run"),
        model=dataclasses.replace(plain.model, vit=vit),
        data=dataclasses.replace(plain.data, augment=None),
        optimizer=OptimizerConfig(trainable=FROZEN),
        train=dataclasses.replace(plain.train, cache_tower=True),
    )


@pytest.fixture(scope="module")
def network(config):
    task = CriticTask.from_config(config)
    graphdef, _ = functional.abstract(task.build())
    return graphdef, functional.init(task.build(), 0)


def replaced(config, part, **fields):
    return dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **fields)})


def cached(config, network, params=None):
    """A loader whose cache is filled, and what it said."""
    said = []
    task = CriticTask.from_config(config)
    loader = task.train_loader()
    task.before_steps(network[0], network[1] if params is None else params, said.append)
    return loader, said


def test_cached_outputs_stand_for_images(config, network):
    plain = CriticTask.from_config(replaced(config, "train", cache_tower=False))
    loader, said = cached(config, network)
    with loader, plain.train_loader() as images:
        batch, expected = next(loader), next(images)
        assert loader.get_state() == images.get_state()
    np.testing.assert_array_equal(batch.index, expected.index)
    np.testing.assert_array_equal(batch.heatmaps, expected.heatmaps)
    outputs = jax.jit(lambda p, image: functional.merge(network[0], p).see(image))
    np.testing.assert_allclose(outputs(network[1], batch.image), outputs(network[1], expected.image), atol=5e-3)
    assert "48 examples" in said[0] and said[-1] == "  cached 48 of 48"
    _, again = cached(config, network)
    assert again == []


def test_an_interrupted_cache_goes_on_and_another_one_is_made_anew(config, network):
    cached(config, network)
    folder = pathlib.Path(config.workdir) / tower_cache.FOLDER
    (folder / "done.json").write_text("32")
    assert "of 16 examples" in cached(config, network)[1][0]
    (folder / "done.json").write_text("3")
    (folder / "output_0.npy").write_bytes(b"damaged")
    assert "of 48 examples" in cached(config, network)[1][0]
    other = network[1] | {"vit": jax.tree.map(lambda x: x + 1, network[1]["vit"])}
    assert "of 48 examples" in cached(config, network, other)[1][0]
    assert json.loads((folder / "key.json").read_text())["count"] == 48


def test_several_sets_are_cached_one_behind_the_other(config, network):
    twice = replaced(config, "data", path=(config.data.path,) * 2)
    twice = dataclasses.replace(twice, workdir=config.workdir + "2")
    loader, lines = cached(twice, network)
    assert lines[-1] == "  cached 96 of 96"
    outputs = np.load(pathlib.Path(twice.workdir) / tower_cache.FOLDER / "output_0.npy", mmap_mode="r")
    np.testing.assert_array_equal(outputs[:48], outputs[48:])
    with loader:
        batches = [next(loader) for _ in range(12)]
    assert sorted(np.concatenate([batch.index for batch in batches])) == list(range(96))


@pytest.mark.parametrize("part,fields,message", [
    ("data", dict(augment=AugmentConfig()), "set data.augment to None"),
    ("data", dict(mix=(1.0, 2.0)), "set data.mix to"),
    ("optimizer", dict(trainable=()), "train.cache_tower: vit/.* is trained; set optimizer.trainable"),
    ("optimizer", dict(lora=LoraConfig(rank=2, patterns=("vit/layer_0/query/kernel",))), "vit/.* is trained"),
])  # fmt: skip
def test_a_tower_that_changes_is_refused(config, network, part, fields, message):
    with pytest.raises(ConfigError, match=message):
        cached(replaced(config, part, **fields), network)


def test_dropout_in_the_tower_is_refused(config, network):
    vit = dataclasses.replace(config.model.vit, dropout=0.1)
    with pytest.raises(ConfigError, match="model.vit.dropout"):
        CriticTask.from_config(replaced(config, "model", vit=vit))
