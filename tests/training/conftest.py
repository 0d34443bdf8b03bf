"""Fixtures of the training loop's tests."""

import contextlib

import pytest

from rahf.core.errors import CheckpointError
from rahf.training.checkpoint import Checkpointer


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
