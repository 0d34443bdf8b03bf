"""Config files, their JSON, and overrides on the command line."""

import dataclasses
import json
import pathlib
import typing

import numpy as np
import pytest

from rahf import config as config_lib
from rahf import registry
from rahf.config import AugmentConfig, Config, CriticConfig, DataConfig, TrainConfig, ViTConfig, overrides
from rahf.core.errors import ConfigError

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHIPPED = sorted(p.relative_to(ROOT / "configs").as_posix() for p in (ROOT / "configs").glob("*/[a-z]*.py"))


def another(value, hint):
    """A value of the same kind that differs."""
    choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
    if choices:
        return next((c for c in choices if c != value), value)  # the name of a family is the only choice
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        kind = typing.get_args(hint)[0]
        if typing.get_origin(kind) is tuple:  # of tuples, empty at first
            return ((7, 8),)
        return tuple(another(v, kind) for v in value) if value else (kind(7),)
    if isinstance(value, str):
        return value + "x"
    return value + 1 if isinstance(value, int) else value / 2 + 0.03125


def leaves(value, prefix=""):
    """Every field that is not itself a group: (path, value, type)."""
    hints = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
        child, path = getattr(value, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(child):
            yield from leaves(child, path + ".")
        else:
            yield path, child, hints[field.name]


def all_changed(config):
    """The config with every single field changed."""
    hints = typing.get_type_hints(type(config))
    changed = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        group = dataclasses.is_dataclass(value)
        changed[field.name] = all_changed(value) if group else another(value, hints[field.name])
    return type(config)(**changed)


# JSON


def test_round_trip_of_the_defaults():
    assert config_lib.from_json(config_lib.to_json(Config())) == Config()


def test_round_trip_of_every_field():
    config = all_changed(Config())
    same = dict((path, value) for path, value, _ in leaves(Config()))
    assert all(same[path] != value for path, value, _ in leaves(config) if path != "model.family")
    restored = config_lib.from_json(config_lib.to_json(config))
    assert restored == config
    assert isinstance(restored.model.score_head.dense_widths, tuple)  # hashable, as the original
    hash(restored)


def test_round_trip_without_augmentation():
    config = Config(data=DataConfig(augment=None))
    assert config_lib.from_json(config_lib.to_json(config)).data.augment is None


def test_missing_fields_keep_their_defaults():
    config = config_lib.from_json('{"train": {"steps": 3}}')
    assert config == Config(train=TrainConfig(steps=3))


def test_other_classes_can_be_read():
    assert config_lib.from_json('{"image_size": 64}', CriticConfig) == CriticConfig(image_size=64)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"trian": {}}', r"^config: unknown field 'trian'\. Did you mean 'train'\?$"),
        ('{"train": {"stepz": 1}}', r"^config\.train: unknown field 'stepz'\. Did you mean 'steps'\?$"),
        ('{"model": {"vit": {"depht": 1}}}', r"^config\.model\.vit: unknown .* Did you mean 'depth'\?$"),
        ('{"mesh": {"qqq": 1}}', r"unknown field 'qqq'\. Known: data, fsdp, tensor\.$"),
        ('{"train": {"steps": 1.5}}', r"config\.train\.steps: expected int, found 1\.5"),
        ('{"train": {"steps": "10"}}', r"config\.train\.steps: expected int, found '10'"),
        ('{"train": {"steps": true}}', r"config\.train\.steps: expected int, found True"),
        ('{"optimizer": {"b1": true}}', r"config\.optimizer\.b1: expected float, found True"),
        ('{"optimizer": {"b1": "0.9"}}', r"config\.optimizer\.b1: expected float, found '0\.9'"),
        ('{"model": {"vit": {"class_token": 1}}}', r"class_token: expected bool, found 1"),
        ('{"workdir": null}', r"config\.workdir: expected str, found None"),
        ('{"train": 3}', r"config\.train: expected fields of TrainConfig, found 3"),
        ('{"loss": {"score_loss": "mae"}}', r"config\.loss\.score_loss: 'mae' is not one of 'mse', 'bce'"),
        ('{"model": {"image_mean": [0.5, 0.5]}}', r"image_mean: expected 3 values, found \[0\.5, 0\.5\]"),
        ('{"model": {"vit": {"stem": [8, "x"]}}}', r"config\.model\.vit\.stem\[1\]: expected int, found 'x'"),
        ('{"model": {"vit": {"stem": 8}}}', r"config\.model\.vit\.stem: expected .*tuple.*, found 8"),
        ('{"data": {"augment": {"hu": 1}}}', r"data\.augment: unknown field 'hu'\. Did you mean 'hue'\?"),
        ("[1]", r"^config: expected fields of Config, found \[1\]"),
        ("{", r"^config: not JSON"),
    ],
)
def test_mistakes_are_named(text, message):
    with pytest.raises(ConfigError, match=message):
        config_lib.from_json(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model": {"vit": {"heads": 0}}}', r"^run: model\.vit\.heads: expected at least 1, found 0$"),
        ('{"model": {"heatmap_head": {"up_widths": [8, -1]}}}', r"up_widths\[1\]: expected at least 1, found -1"),
        ('{"model": {"image_size": 0}}', r"model\.image_size: expected at least 1, found 0"),
        ('{"model": {"t5": {"dropout": 1.0}}}', r"t5\.dropout: expected at least 0 and below 1, found 1\.0"),
        ('{"model": {"image_std": [0.5, 0.0, 0.5]}}', r"image_std\[1\]: expected a number above 0, found 0\.0"),
        ('{"data": {"batch_size": -8}}', r"data\.batch_size: expected at least 1, found -8"),
        ('{"optimizer": {"learning_rate": -1e-3}}', r"learning_rate: expected 0 or more, found -0\.001"),
        ('{"optimizer": {"warmup_steps": -1}}', r"warmup_steps: expected 0 or more, found -1"),
        ('{"loss": {"score_weight": NaN}}', r"loss\.score_weight: expected 0 or more, found nan"),
        ('{"data": {"augment": {"crop_probability": 1.5}}}', r"crop_probability: expected 0 to 1, found 1\.5"),
        (
            '{"model": {"family": "pixel-diffusion", "block_out_channels": [0]}}',
            r"block_out_channels\[0\]: expected at",
        ),
    ],
)
def test_numbers_that_no_run_could_use(text, message):
    with pytest.raises(ConfigError, match=message):
        config_lib.from_json(text, where="run")


def test_numbers_are_checked_on_every_way_in(write):
    with pytest.raises(ConfigError, match=r"model\.vit\.heads: expected at least 1, found 0"):
        overrides.parse("demo.py", ["--model.vit.heads", "0"])
    bad = "from rahf.config import *\ndef config():\n    return Config(train=TrainConfig(accumulate=0))\n"
    with pytest.raises(ConfigError, match=r"\.py: train\.accumulate: expected at least 1, found 0"):
        config_lib.load(write(bad))
    with pytest.raises(ConfigError, match=r"^model\.vit\.depth: expected at least 1, found 0"):
        registry.task(Config(model=CriticConfig(vit=dataclasses.replace(CriticConfig().vit, depth=0))))


def test_where_names_the_file():
    with pytest.raises(ConfigError, match="^runs/x/config.json: unknown field 'stepz'"):
        config_lib.from_json('{"stepz": 1}', TrainConfig, "runs/x/config.json")


def test_whole_numbers_are_floats_where_floats_are_wanted():
    weight_decay = config_lib.from_json('{"optimizer": {"weight_decay": 0}}').optimizer.weight_decay
    assert weight_decay == 0.0 and isinstance(weight_decay, float)


def test_configs_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().train.steps = 3


# Files


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # from any folder: they lie beside the package
    config = config_lib.load(f"configs/{name}")
    assert config == config_lib.load(name) == config_lib.load(str(ROOT / "configs" / name))
    assert config_lib.from_json(config_lib.to_json(config)) == config
    assert config.workdir != Config().workdir


def test_there_is_a_demo():
    assert {"critic/demo.py", "diffusion/demo.py"} <= set(SHIPPED)


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "mine.py"
        path.write_text("from rahf.config import *\nimport dataclasses\n" + text)
        return str(path)

    return write


def test_a_file_of_ones_own(write):
    file = write("def config():\n    return Config(workdir='x', model=CriticConfig(vit=ViTConfig(depth=3)))\n")
    assert config_lib.load(file) == Config(workdir="x", model=CriticConfig(vit=ViTConfig(depth=3)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("Config(train=TrainConfig(stepz=1))", r"mine\.py: .*TrainConfig.*'stepz'.*Did you mean 'steps'\?"),
        ("Config(mode=CriticConfig())", r"mine\.py: .*'mode'.*Did you mean 'model'\?"),
        ("dataclasses.replace(ViTConfig(), heds=1)", r"mine\.py: .*'heds'.*Did you mean 'heads'\?"),
        ("Config(T5Config(qqq=1))", r"mine\.py: .*'qqq'\. Known: decoder_layers, "),
        ("CriticConfig()", r"config\(\) returned CriticConfig, expected rahf\.config\.Config"),
        ("None", r"config\(\) returned NoneType"),
        ("int('3', 3, 3)", r"mine\.py: "),
    ],
)
def test_mistakes_in_a_file(write, call, message):
    with pytest.raises(ConfigError, match=message):
        config_lib.load(write(f"def config():\n    return {call}\n"))


def test_a_file_without_config(write):
    with pytest.raises(ConfigError, match=r"mine\.py: must define config\(\) -> rahf\.config\.Config"):
        config_lib.load(write("configuration = Config()\n"))


def test_no_such_file(tmp_path):
    with pytest.raises(ConfigError, match=r"file configs/demmo\.py\. Did you mean 'configs/critic/demo\.py'\?"):
        config_lib.load("configs/demmo.py")
    with pytest.raises(ConfigError, match=r"no config file .*demo\.py"):
        config_lib.load(str(tmp_path / "demo.py"))  # a name among ours does not excuse another folder


# Overrides


def test_override_some_fields():
    base = config_lib.load("configs/critic/demo.py")
    fields = ["--train.steps", "10", "--data.batch-size=3", "--workdir", "there"]
    config = overrides.parse("configs/critic/demo.py", fields)
    train, data = dataclasses.replace(base.train, steps=10), dataclasses.replace(base.data, batch_size=3)
    assert config == dataclasses.replace(base, train=train, data=data, workdir="there")
    assert overrides.parse("configs/critic/demo.py", []) == base


def test_hyphens_and_underscores_are_the_same():
    for name in ("--model.t5.head-width", "--model.t5.head_width"):
        assert overrides.parse("demo.py", [name, "5"]).model.t5.head_width == 5


def test_tuples_choices_and_switches():
    fields = "--model.vit.stem 8 16 --optimizer.schedule cosine --model.vit.class-token "
    config = overrides.parse("demo.py", [*fields.split(), "--model.t5.no-image-relative-bias"])
    assert config.model.vit.stem == (8, 16) and config.optimizer.schedule == "cosine"
    assert config.model.vit.class_token and not config.model.t5.image_relative_bias
    assert overrides.parse("demo.py", ["--model.vit.stem"]).model.vit.stem == ()
    assert overrides.parse("demo.py", ["--mesh.data", "-1"]).mesh.data == -1


def test_every_field_can_be_overridden(write):
    fields = []
    for path, value, hint in leaves(Config()):
        value = another(value, hint)
        if isinstance(value, bool):
            group, name = path.rsplit(".", 1)
            fields.append(f"--{group}.{'' if value else 'no_'}{name}")
        else:
            fields += [f"--{path}", *map(str, np.ravel(value) if isinstance(value, tuple) else [value])]
    config = overrides.parse(write("def config():\n    return Config()\n"), fields)
    assert config == all_changed(Config())
    assert isinstance(config.data.augment, AugmentConfig)


def test_help_lists_every_field(write, capsys):
    with pytest.raises(SystemExit) as stopped:
        overrides.parse(write("def config():\n    return Config()\n"), ["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for path, _, _ in leaves(Config()):
        assert f"--{path.replace('_', '-')}" in text
    assert "PyTorch" in text  # the comments beside the fields explain them


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("--train.stepz", r"^unknown config field --train\.stepz\. Did you mean 'train\.steps'\?$"),
        ("--data.batchsize=3", r"unknown .* --data\.batchsize\. Did you mean 'data\.batch_size'\?$"),
        ("--model.kind", r"--model\.kind\. The family of a model comes with the config file: choose another one$"),
        ("--qqqqqq", r"unknown config field --qqqqqq\. Known: "),
    ],
)
def test_unknown_override(field, message):
    with pytest.raises(ConfigError, match=message):
        overrides.parse("demo.py", [field, "1"])


def test_former_names_of_diffusion_options(write):
    file = write("def config():\n    return Config(model=PixelDiffusionConfig())\n")
    with pytest.raises(ConfigError, match=r"--model\.diffusion\.predicts\. It is --model\.prediction-type now$"):
        overrides.parse(file, ["--model.diffusion.predicts", "x0"])


@pytest.mark.parametrize(
    "fields",
    [["--train.steps", "many"], ["--train.steps"], ["--optimizer.schedule", "linear"], ["train.steps", "3"]],
)
def test_override_of_the_wrong_kind(fields, capsys):
    with pytest.raises(SystemExit) as stopped:
        overrides.parse("demo.py", fields)
    assert stopped.value.code == 2
    assert fields[0].strip("-") in capsys.readouterr().err


def test_json_is_for_people():
    lines = config_lib.to_json(Config()).splitlines()
    assert lines[1] == '  "workdir": "runs/unnamed",' and len(lines) > 80
    assert list(json.loads("\n".join(lines))) == [f.name for f in dataclasses.fields(Config)]
