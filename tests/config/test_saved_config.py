"""Config files that were edited by hand: odd types, zeros, huge numbers and deep nesting are ConfigErrors."""

import dataclasses
import json

import pytest

from rahf import config as config_lib
from rahf.cli import main as cli
from rahf.config import Config, CriticConfig, ViTConfig, limits
from rahf.core.errors import ConfigError

TREE = json.loads(config_lib.to_json(Config()))


def changed(path: str, value) -> str:
    tree = json.loads(json.dumps(TREE))
    *groups, name = path.split(".")
    node = tree
    for group in groups:
        node = node[group]
    node[name] = value
    return json.dumps(tree)


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("model.vit.heads", 0, "model.vit.heads: expected at least 1, found 0"),
        ("model.vit.patch_size", 0, "expected at least 1"),
        ("model.image_size", -32, "expected at least 1, found -32"),
        ("model.image_size", 10**400, "model.image_size: expected a number of reasonable size, found 1000"),
        ("model.heatmap_head.up_widths", [8, 0], r"model.heatmap_head.up_widths\[1\]: expected at least 1, found 0"),
        ("model.image_std", [0.5, 0, 0.5], r"model.image_std\[1\]: expected a number above 0, found 0"),
        ("optimizer.learning_rate", 10**400, "optimizer.learning_rate: expected a number of reasonable size"),
        ("optimizer.learning_rate", float("nan"), "optimizer.learning_rate: expected 0 or more, found nan"),
        ("loss.score_weight", float("inf"), "loss.score_weight: expected a number of reasonable size"),
        ("train.log_every", 0, "train.log_every: expected at least 1"),
        ("data.batch_size", 0, "data.batch_size: expected at least 1"),
        ("model.family", [], "model.family: .. is not one of"),
        ("model.family", {"a": 1}, "is not one of"),
        ("model", {"kind": []}, "model.kind: .. is not one of"),
        ("model", {"kind": "diffusion", "diffusion": 5}, "model.diffusion: expected fields, found 5"),
        ("model.vit", 5, "model.vit: expected fields of ViTConfig, found 5"),
        ("train.best_mode", ["max"], "is not one of"),
        ("data.path", 5, "data.path: expected str, found 5"),
    ],
)
def test_what_an_editor_may_leave(path, value, message):
    with pytest.raises(ConfigError, match=f"config.json.*{message}"):
        config_lib.from_json(changed(path, value), where="config.json")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "", "{", '{"workdir": ' + "1" * 5000 + "}", "3", "\0"]
)
def test_no_config_at_all(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match="config.json: (not JSON|expected fields of Config)"):
        config_lib.read_saved(tmp_path / "config.json")


def test_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{")
    for file in (tmp_path / "config.json", tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match="cannot be read"):
            config_lib.read_saved(file)


def test_what_may_be_zero():
    limits.check(Config())
    zero = dataclasses.replace(
        Config(),
        train=config_lib.TrainConfig(eval_every=0, steps=0),
        model=CriticConfig(vit=ViTConfig(stem_blocks=0, stem=())),
        mesh=config_lib.MeshConfig(data=-1),
        optimizer=config_lib.OptimizerConfig(warmup_steps=0, clip_norm=0.0),
    )
    limits.check(zero)


def test_the_command_line_is_checked_too(capsys):
    assert cli.main(["train", "demo.py", "--model.vit.heads", "0"]) == 1
    assert capsys.readouterr().err == "rahf: model.vit.heads: expected at least 1, found 0\n"
