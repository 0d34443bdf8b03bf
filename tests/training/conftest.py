"""Fixtures of the training loop's tests."""

import contextlib
import pathlib
from collections.abc import Iterator

import pytest

from rahf.core.errors import CheckpointError
from rahf.training.checkpoint import Checkpointer
from tests.helpers import small_family, train_maker
from tests.helpers.unchanged import unchanged


@pytest.fixture(scope="session")
def small_config(tiny_data, tmp_path_factory) -> pathlib.Path:
    """A config file of a training run on `tiny_data` that compiles in a moment; see `small_family`."""
    file = tmp_path_factory.mktemp("configs") / "small.py"
    file.write_text(small_family.CONFIG.format(data=str(tiny_data)))
    return file


@pytest.fixture(scope="session")
def finished_small_run(small_config, tmp_path_factory) -> Iterator[pathlib.Path]:
    """The run directory of `small_config`, trained to its last step without a break. A test that changes it fails."""
    folder = tmp_path_factory.mktemp("finished") / "small"
    assert train_maker.train(small_config, folder) == 0
    yield from unchanged(folder)


@pytest.fixture
def opened(tmp_path):
    """Makes checkpointers of one run and closes them."""
    made = []

    def open_again(keep: int = 2) -> Checkpointer:
        for before in made:
            with contextlib.suppress(CheckpointError):
                before.wait()
        made.append(Checkpointer(tmp_path / "run", keep))
        return made[-1]

    yield open_again
    for one in made:
        one.close()
