"""An exported critic of a network that compiles fast."""

import dataclasses
import pathlib
import shutil

import numpy as np
import pytest

import rahf
from rahf import config as config_lib
from rahf.critic.export import write
from rahf.critic.networks import build
from rahf.nn import functional
from rahf.training.checkpoint import Checkpointer
from tests.helpers.image_maker import smooth


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> pathlib.Path:
    return tmp_path_factory.mktemp("exports")


@pytest.fixture(scope="session")
def run(tiny_run, folder) -> pathlib.Path:
    """A run directory with a network that compiles fast."""
    copy = shutil.copytree(tiny_run, folder / "small", ignore=shutil.ignore_patterns("checkpoints"))
    config = config_lib.from_json((copy / "config.json").read_text())
    t5 = dataclasses.replace(config.model.t5, encoder_layers=1)
    heads = dict(
        heatmap_head=dataclasses.replace(config.model.heatmap_head, conv_widths=(), up_widths=(8,)),
        score_head=dataclasses.replace(config.model.score_head, conv_widths=()),
    )
    vit = dataclasses.replace(config.model.vit, depth=1)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, vit=vit, t5=t5, **heads))
    (copy / "config.json").write_text(config_lib.to_json(config))
    params = functional.init(build.build(config.model), seed=0)
    for name, part in params.items():  # the heads start with almost constant outputs
        if name.startswith(("heatmap_", "score_")):
            part["out"]["kernel"] = part["out"]["kernel"] * 20
    saver = Checkpointer(copy, keep=1)
    saver.save_best(7, params, {})
    saver.close()
    return copy


@pytest.fixture(scope="session")
def checkpoint(run):
    return rahf.load(run)


@pytest.fixture(scope="session")
def full(checkpoint, folder) -> pathlib.Path:
    return write.write_export(checkpoint, folder / "full.rahf", about="Made for a test.\n").file


@pytest.fixture(scope="session")
def critic(full):
    return rahf.load(full)


@pytest.fixture(scope="session")
def small(checkpoint, folder) -> pathlib.Path:
    """Scores only, weights in 16 bits."""
    return write.write_export(checkpoint, folder / "small.rahf", scores_only=True, bf16=True).file


@pytest.fixture(scope="session")
def pictures() -> list[np.ndarray]:
    return [smooth(h, w, seed) for seed, (h, w) in enumerate([(40, 60), (32, 32), (90, 33)])]
