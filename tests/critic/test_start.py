"""Runs that start from published towers or another model: what is taken, what is recorded, what is refused."""

import dataclasses
import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys
from typing import NamedTuple

import jax
import numpy as np
import pytest
from PIL import Image

from rahf import config as config_lib
from rahf.cli import main as cli
from rahf.core import licenses, tree
from rahf.core.errors import CheckpointError, PretrainedError, TrainError
from rahf.critic import start as start_lib
from rahf.critic import towers
from rahf.critic.task import CriticTask
from rahf.nn import functional
from rahf.pretrained import source
from rahf.pretrained.positions import resize_positions
from rahf.text import train_tokenizer
from rahf.training import state as state_lib
from tests.helpers import pretrained_maker as maker
from tests.helpers import start_maker, train_maker


class Started(NamedTuple):
    run: pathlib.Path
    config_file: pathlib.Path
    config: config_lib.Config
    vision: pathlib.Path
    text: pathlib.Path
    said: str


@pytest.fixture(scope="module")
def started(tiny_data, tmp_path_factory) -> Started:
    """A run of one step that started from both towers. Tests must not change it."""
    folder = tmp_path_factory.mktemp("started")
    vision, text, rows = start_maker.towers(folder, tiny_data)
    file = folder / "started.py"
    file.write_text(start_maker.CONFIG.format(data=str(tiny_data), rows=rows, vision=str(vision), text=str(text)))
    run = folder / "run"
    done = train_maker.in_process("train", str(file), "--workdir", str(run))
    assert done.returncode == 0, done.stderr
    return Started(run, file, config_lib.load(str(file)), vision, text, done.stdout)


def changed(config, **start):
    return dataclasses.replace(config, start=dataclasses.replace(config.start, **start))


def with_tokenizer(config, tokenizer):
    return dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer=str(tokenizer)))


# What is taken and recorded


def test_a_fresh_state_has_the_towers_and_random_heads(started):
    made = state_lib.setup(CriticTask(started.config, None))
    begin = start_lib.load(started.config, made.shapes.params)
    state = state_lib.create(CriticTask(started.config, None), made, begin.params)
    found = functional.flatten(jax.device_get(state.params))
    tower = maker.t5_state()
    table = maker.draw({"x": (started.config.model.t5.vocab_size, 16)}, seed=3)["x"]
    np.testing.assert_array_equal(found["embedding"], table)
    query = tower["decoder.block.1.layer.1.EncDecAttention.q.weight"]
    np.testing.assert_array_equal(found["decoder/layer_1/cross/query/kernel"], query.T)
    norm = maker.vit_state()["encoder.layer.1.layernorm_after.weight"]
    np.testing.assert_array_equal(found["vit/layer_1/norm2/scale"], norm)
    assert found["vit/position"].shape == (36, 16)
    plain = functional.flatten(jax.device_get(state_lib.create(CriticTask(started.config, None), made).params))
    same = [path for path in found if np.array_equal(found[path], plain[path])]
    assert set(begin.record["random"]) <= set(same)  # drawn as without towers
    assert sorted(begin.record["taken"] + begin.record["random"]) == sorted(found)
    assert tree.top_names(begin.record["random"]) == [
        "heatmap_implausibility", "heatmap_misalignment", "projection",
        "score_aesthetics", "score_alignment", "score_overall", "score_plausibility",
    ]  # fmt: skip


def test_the_record_of_a_run(started):
    record = json.loads((started.run / "start.json").read_text())
    parameters = sum(v.size for n, v in maker.vit_state().items() if not n.startswith("pooler"))
    assert record["vision"] == {
        "name": str(started.vision),
        "revision": None,
        "license": "apache-2.0",
        "parts": ["vit"],
        "parameters": parameters - 2 * 16 + (36 - 16) * 16,  # no class token, more positions
        "positions": {"from": [4, 4], "to": [6, 6], "interpolation": "bicubic"},
    }
    assert record["text"]["license"] == "unknown" and record["text"]["parts"] == ["decoder", "embedding", "encoder"]
    assert "vit/layer_0/query/kernel" in record["taken"] and "encoder/relative_bias/table" in record["taken"]
    assert "projection/kernel" in record["random"] and "score_overall/out/bias" in record["random"]


def test_what_a_run_says(started):
    lines = started.said.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("starts from"))
    assert lines[at].split() == ["starts", "from", "revision", "license", "parameters", "positions"]
    assert lines[at + 1].split()[:4] == ["vision", str(started.vision), "-", "apache-2.0"]
    assert lines[at + 1].endswith("0.0 M       4x4 to 6x6, bicubic")
    assert lines[at + 2].split()[:4] == ["text", str(started.text), "-", "unknown"]
    assert lines[at + 3].startswith("random: heatmap_implausibility, heatmap_misalignment, projection, score_aes")


def test_the_vocabulary_beside_the_t5_is_used_and_kept(started):
    assert (started.run / "tokenizer.model").read_bytes() == (started.text / "spiece.model").read_bytes()


def test_resuming_needs_no_towers(started, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(started.run, run)

    def never(*_, **__):
        raise AssertionError("towers were looked for")

    monkeypatch.setattr(towers, "load_towers", never)
    monkeypatch.setattr(source, "locate", never)
    assert cli.main(["train", str(started.config_file), "--workdir", str(run)]) == 0
    out = capsys.readouterr().out
    assert "resuming at step 1" in out and "starts from" not in out
    assert (run / "start.json").read_bytes() == (started.run / "start.json").read_bytes()
    # Other towers cannot be put into a run that has begun.
    assert cli.main(["train", str(started.config_file), "--workdir", str(run), "--start.vision", "google/other"]) == 1
    assert "start.vision: " in capsys.readouterr().err


_SHARDS = """
import jax, numpy as np
from rahf.config import MeshConfig
from rahf.nn import functional, layers
from flax import nnx
from rahf.training import sharding
from rahf.core import errors

class Two(nnx.Module):
    def __init__(self):
        self.embedding = layers.parameter(1024, 64, std=1.0)
        self.other = layers.parameter(1024, 64, std=1.0)

_, shapes = functional.abstract(Two)
places = sharding.tree_shardings(shapes, sharding.make_mesh(MeshConfig(data=1, fsdp=8)))
given = np.random.default_rng(0).standard_normal((1024, 64), np.float32)
pieces, plain = [], jax.make_array_from_callback

def recorded(shape, sharding, piece):
    def handed_over(index):
        pieces.append(piece(index).shape)
        return piece(index)
    return plain(shape, sharding, handed_over)

def never(*_, **__):
    raise AssertionError("an array was put on a device whole")

jax.make_array_from_callback, functional.jnp.asarray, jax.device_put = recorded, never, never
made = functional.init(Two, 0, places, {"embedding": given})
assert np.array_equal(np.asarray(made["embedding"]), given)
print(len(pieces), set(pieces), [leaf.sharding.shard_shape(leaf.shape) for leaf in made.values()])
"""


def test_given_parameters_go_straight_into_their_shards():
    """Of two arrays on 8 devices, 16 pieces of an eighth are handed over, and nothing else."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", _SHARDS], capture_output=True, text=True, env=os.environ | {"XLA_FLAGS": flags}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "16 {(128, 64)} [(128, 64), (128, 64)]"


def test_given_parameters_must_be_of_the_network(started):
    made = state_lib.setup(CriticTask(started.config, None))
    with pytest.raises(ValueError, match="projection/weight: given with shape .* the network has no such parameter"):
        odd = {"projection": {"weight": np.zeros((16, 16), np.float32)}}
        state_lib.create(CriticTask(started.config, None), made, odd)
    with pytest.raises(ValueError, match=r"projection/bias: given with shape \(3,\), the network has \(16,\)"):
        state_lib.create(CriticTask(started.config, None), made, {"projection": {"bias": np.zeros(3, np.float32)}})


def test_one_tower_alone(started):
    config = with_tokenizer(changed(started.config, text=""), "dataset")
    begin = start_lib.load(config, state_lib.setup(CriticTask(config, None)).shapes.params)
    assert sorted(begin.params) == ["vit"] and "text" not in begin.record
    assert "encoder" in tree.top_names(begin.record["random"])
    shapes = state_lib.setup(CriticTask(config, None)).shapes.params
    assert start_lib.load(changed(config, vision=""), shapes) == ({}, {})


# Another model


def test_starting_from_a_model(started, caplog):
    config = changed(started.config, vision="", text="", model=str(started.run), fresh=("heatmap_*", "score_overall"))
    made = state_lib.setup(CriticTask(config, None))
    with caplog.at_level(logging.WARNING):
        begin = start_lib.load(config, made.shapes.params)
    assert f"{started.text}: license unknown" in caplog.text  # what the model itself started from
    _, stored = train_maker.stored(started.run, "best")
    found = functional.flatten(jax.device_get(state_lib.create(CriticTask(config, None), made, begin.params).params))
    kernel = "['params']['decoder']['layer_0']['cross']['key']['kernel']"
    np.testing.assert_array_equal(found["decoder/layer_0/cross/key/kernel"], stored[kernel])
    record = begin.record["model"]
    assert record["checkpoint"] == "best/1" and record["license"] == "apache-2.0; unknown"
    assert record["licenses"] == {str(started.vision): "apache-2.0", str(started.text): "unknown"}
    assert tree.top_names(begin.record["random"]) == ["heatmap_implausibility", "heatmap_misalignment", "score_overall"]
    assert len(licenses.start_table(begin.record)) == 3


def test_a_model_at_another_image_size(started):
    """Of a grid of 6 x 6 patches to one of 8 x 8, as published towers are; and nothing else changes."""
    config = changed(started.config, vision="", text="", model=str(started.run))
    larger = dataclasses.replace(config, model=dataclasses.replace(config.model, image_size=64))
    same, begin = (
        start_lib.load(one, state_lib.setup(CriticTask(one, None)).shapes.params) for one in (config, larger)
    )
    assert same.record["model"]["positions"] is None
    moved = begin.record["model"]["positions"]
    assert moved == {"from": [6, 6], "to": [8, 8], "interpolation": "bicubic"}
    assert "6x6 to 8x8, bicubic" in licenses.start_table(begin.record)[1]
    before, after = functional.flatten(same.params), functional.flatten(begin.params)
    expected = resize_positions(np.asarray(before.pop("vit/position")), 6, 8, "bicubic")
    np.testing.assert_array_equal(after.pop("vit/position"), expected)
    assert expected.shape == (64, 16)
    assert all(np.array_equal(before[path], after[path]) for path in before.keys() | after.keys())
    state = state_lib.create(CriticTask(larger, None), state_lib.setup(CriticTask(larger, None)), begin.params)
    np.testing.assert_array_equal(jax.device_get(state.params["vit"]["position"]), expected)


def test_a_model_with_another_vocabulary(started):
    """What is read and written anew begins anew; the rest is taken."""
    rows = started.config.model.t5.vocab_size
    config = changed(started.config, vision="", text="", model=str(started.run))
    t5 = dataclasses.replace(config.model.t5, vocab_size=rows + 8)
    larger = dataclasses.replace(config, model=dataclasses.replace(config.model, t5=t5))
    with pytest.raises(CheckpointError, match=rf"embedding: shape \({rows}, 16\), expected \({rows + 8}, 16\)"):
        start_lib.load(larger, state_lib.setup(CriticTask(larger, None)).shapes.params)
    shapes = state_lib.setup(CriticTask(larger, None)).shapes.params
    begin = start_lib.load(changed(larger, fresh=("embedding",)), shapes)
    assert "embedding" not in begin.params and {"encoder", "decoder", "vit"} <= begin.params.keys()


def test_a_model_of_another_network_is_refused(started):
    config = changed(started.config, vision="", text="", model=str(started.run))
    vit = dataclasses.replace(config.model.vit, heads=4, dropout=0.1)  # no shape tells the number of heads
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, vit=vit))
    with pytest.raises(TrainError) as caught:
        start_lib.load(other, state_lib.setup(CriticTask(other, None)).shapes.params)
    lines = str(caught.value).splitlines()
    assert lines[1:-1] == ["  model.vit.heads is 4, that model has 2"] and "start.fresh" in lines[-1]
    with pytest.raises(TrainError, match="no part 'heatmap'; the network has decoder, embedding, encoder, heatmap_"):
        start_lib.load(changed(config, fresh=("heatmap",)), state_lib.setup(CriticTask(config, None)).shapes.params)


def test_the_vocabulary_of_a_model(started, tmp_path):
    config = changed(started.config, vision="", text="", model=str(started.run))
    config = dataclasses.replace(config, workdir=str(tmp_path / "run"))
    assert start_lib.tokenizer(config).model == (started.text / "spiece.model").read_bytes()
    small = tmp_path / "small.model"
    small.write_bytes(train_tokenizer(["a cat", "a dog"], 320))
    pieces = config.model.t5.vocab_size
    with pytest.raises(TrainError, match=rf"small.model: has \d+ pieces .* trained with, which has {pieces}; set data"):
        start_lib.tokenizer(with_tokenizer(config, small))
    start_lib.tokenizer(with_tokenizer(changed(config, fresh=("embedding",)), small))


# Licenses at load


def test_commands_say_unknown_licenses_once(started, tmp_path, caplog):
    line = f"weights of run come from {started.text}: license unknown"
    picture = tmp_path / "picture.png"
    Image.new("RGB", (48, 48), "red").save(picture)
    arguments = ["predict", str(started.run), str(picture), "--prompt", "a red square", "--out", str(tmp_path / "out")]
    done = train_maker.in_process(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(line) == 1
    with caplog.at_level(logging.WARNING):
        assert cli.main(["evaluate", str(started.run), "--split", "dev", "--report", str(tmp_path / "report")]) == 0
    assert caplog.messages.count(line) == 1


# Vocabularies and contradictions


def test_a_vocabulary_that_is_not_the_t5s(started, tmp_path):
    config = dataclasses.replace(started.config, workdir=str(tmp_path / "run"))
    small = tmp_path / "small.model"
    small.write_bytes(train_tokenizer(["a cat", "a dog"], 320))
    rows = config.model.t5.vocab_size
    with pytest.raises(PretrainedError, match=rf"has \d+ pieces, .* embedding {rows} rows .* to 'start'"):
        start_lib.tokenizer(with_tokenizer(config, small))
    assert start_lib.tokenizer(with_tokenizer(config, started.text)).vocab_size == rows  # the T5's folder
    assert start_lib.tokenizer(with_tokenizer(config, started.run)).vocab_size == rows
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainError, match="empty has no vocabulary; expected spiece.model or tokenizer.model"):
        start_lib.tokenizer(with_tokenizer(config, tmp_path / "empty"))
    with pytest.raises(TrainError, match="neither start.text nor start.model is given"):
        start_lib.tokenizer(changed(config, text=""))


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(model="runs/x"), "start.model brings its own towers"),
        (dict(fresh=("decoder",)), "start.fresh leaves parts of start.model random, which is not given"),
        (dict(vision="", vision_revision="main"), "start.vision_revision is given without start.vision"),
        (dict(text="", text_revision="main"), "start.text_revision is given without start.text"),
    ],
)
def test_contradictions(started, tmp_path, fields, message):
    config = changed(dataclasses.replace(started.config, workdir=str(tmp_path / "run")), **fields)
    with pytest.raises(TrainError, match=message):
        start_lib.tokenizer(config)


def test_towers_that_do_not_fit_stop_a_run_in_one_message(started, tmp_path, capsys):
    run = tmp_path / "run"
    fields = ["--workdir", str(run), "--model.vit.depth", "3", "--model.vit.heads", "4"]
    assert cli.main(["train", str(started.config_file), *fields]) == 1
    error = capsys.readouterr().err
    assert "model.vit.depth is 3, the checkpoint has 2" in error
    assert "model.vit.heads is 4, the checkpoint has 2" in error
    assert "Traceback" not in error and not (run / "start.json").exists()
