"""A family that only tests know trains, resumes, shards and evaluates; it adds to rahf one entry of the registry."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

import rahf
from rahf import registry
from rahf.config import Config, DataConfig, LoraConfig, OptimizerConfig, TrainConfig, from_json, to_json
from rahf.core.errors import ArgumentError, ConfigError, TrainError
from rahf.nn import functional
from rahf.training import run_folder
from tests.helpers import toy_family, train_maker


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(registry.FAMILIES, "toy", toy_family.ENTRY)


OPTIMIZER = OptimizerConfig(learning_rate=0.01, warmup_steps=1, ema_decay=0.5)


def toy(folder, steps=6, optimizer=OPTIMIZER, **changes):
    train = TrainConfig(
        steps=steps, log_every=2, eval_every=3, checkpoint_every=3, best_metric="loss/total", best_mode="min"
    )
    return Config(
        workdir=str(folder),
        data=DataConfig(batch_size=8),
        model=toy_family.ToyConfig(),
        optimizer=optimizer,
        train=dataclasses.replace(train, **changes),
    )


def params_of(folder, step):
    shapes = functional.abstract(registry.task(toy(folder)).build())[1]
    return functional.flatten(run_folder.load_params(folder / f"checkpoints/latest/{step}/state", shapes))


def test_it_trains_evaluates_and_is_loaded(tmp_path):
    finished = registry.train(toy(tmp_path / "run", steps=30))
    rows = train_maker.rows(tmp_path / "run")
    losses = [row["loss/square"] for row in rows if "loss/square" in row]
    assert losses[-1] < 0.9 * losses[0] and finished.step == 30
    assert finished.metrics["loss/total"] < losses[0]
    assert json.loads((tmp_path / "run/config.json").read_text())["model"] == {"family": "toy", "width": 256}
    assert registry.load(tmp_path / "run") == f"toy at {tmp_path / 'run'}"


def test_it_resumes_to_the_same_parameters(tmp_path):
    registry.train(toy(tmp_path / "straight"))
    registry.train(toy(tmp_path / "halves", steps=3))
    registry.train(toy(tmp_path / "halves", steps=6))
    straight, halves = params_of(tmp_path / "straight", 6), params_of(tmp_path / "halves", 6)
    assert all(np.array_equal(straight[path], halves[path]) for path in straight)
    with pytest.raises(TrainError, match="model.width: 256 there, 512 given"):
        config = toy(tmp_path / "halves")
        registry.train(dataclasses.replace(config, model=toy_family.ToyConfig(width=512)))


def test_parts_of_a_batch_and_adapters_need_no_code_of_the_family(tmp_path):
    registry.train(toy(tmp_path / "whole"))
    registry.train(toy(tmp_path / "parts", accumulate=2))
    whole, parts = params_of(tmp_path / "whole", 6), params_of(tmp_path / "parts", 6)
    np.testing.assert_allclose(parts["kernel"], whole["kernel"], atol=2e-4)
    lora = OptimizerConfig(learning_rate=0.01, warmup_steps=1, lora=LoraConfig(rank=2, patterns=("kernel",)))
    registry.train(toy(tmp_path / "lora", optimizer=lora))
    assert np.abs(params_of(tmp_path / "lora", 6)["kernel"] - whole["kernel"]).max() > 1e-4


def test_it_shards(tmp_path):
    """On eight devices the kernel lies in eight pieces, and the parameters become those of one device."""
    registry.train(toy(tmp_path / "one"))
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "GLIBC_TUNABLES": ""}
    program = (
        "import dataclasses, pathlib, sys; from rahf import registry; from rahf.config import MeshConfig;"
        "from rahf.training import state; from tests.helpers import toy_family;"
        "from tests.training.test_family import toy;"
        "registry.FAMILIES['toy'] = toy_family.ENTRY;"
        "config = dataclasses.replace(toy(pathlib.Path(sys.argv[1])), mesh=MeshConfig(data=1, fsdp=8));"
        "print(state.setup(registry.task(config)).shardings.params['kernel'].spec); registry.train(config)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "eight")], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[0].endswith("(None, 'fsdp')")
    one, eight = params_of(tmp_path / "one", 6), params_of(tmp_path / "eight", 6)
    np.testing.assert_allclose(eight["kernel"], one["kernel"], atol=1e-4)


def test_its_config_is_read_by_its_name(tmp_path):
    config = toy(tmp_path)
    assert from_json(to_json(config)) == config
    with pytest.raises(ConfigError, match=r"config.model.family: 'toyy' is not one of .*'critic'.*'toy'"):
        from_json(to_json(config).replace('"toy"', '"toyy"'))
    with pytest.raises(ConfigError, match="unknown field 'widht'. Did you mean 'width'"):
        from_json(to_json(config).replace('"width"', '"widht"'))


def test_a_family_that_is_not_registered(tmp_path, monkeypatch):
    monkeypatch.delitem(registry.FAMILIES, "toy")
    with pytest.raises(ConfigError, match="model.family 'toy' is not registered; known: .*clip, critic"):
        registry.train(toy(tmp_path))


def test_every_entry_of_the_table_exists():
    for name, family in registry.FAMILIES.items():
        config, task, load = (registry.resolve(place) for place in family)
        assert config().family == name and callable(task) and callable(load)


def test_training_is_one_public_call(tmp_path):
    assert rahf.train(toy(tmp_path)).step == 6 and jax.process_count() == 1
    with pytest.raises(ArgumentError, match=r"expected a rahf.Config, found 'demo.py'; rahf.config.load\(path\) reads"):
        rahf.train("demo.py")


def test_a_task_may_end_its_run(tmp_path, monkeypatch, capsys):
    """After the second evaluation, with a checkpoint; the same command goes no further and says why."""

    class Ending(toy_family.ToyTask):
        def stop_reason(self, evaluations):
            assert all(np.isfinite(metrics["loss/total"]) for metrics in evaluations)
            return f"{len(evaluations)} evaluations are enough" if len(evaluations) > 1 else None

    monkeypatch.setitem(registry.FAMILIES, "toy", toy_family.ENTRY._replace(task=Ending))
    run = toy(tmp_path / "run", steps=30)
    assert registry.train(run).step == 6
    assert params_of(tmp_path / "run", 6)
    assert "ending at step 6: 2 evaluations are enough" in capsys.readouterr().out
    assert registry.train(run).step == 6
    assert "the run ended at step 6: 2 evaluations are enough" in capsys.readouterr().out
    assert [row["step"] for row in train_maker.rows(tmp_path / "run") if "eval/loss/total" in row] == [3, 6]
