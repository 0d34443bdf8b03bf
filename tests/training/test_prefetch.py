"""One batch ahead: what is taken when, what a checkpoint says of it, and that nothing waits between log points."""

import contextlib
import pathlib
import threading
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from rahf import config as config_lib
from rahf.critic.losses import OF_LABELS
from rahf.training import loop
from rahf.training.prefetch import Prefetch
from rahf.training.step import StepMetrics


class Loader:
    """Batches 1, 2, …; fails at `broken`."""

    def __init__(self, broken=None):
        self.number, self.broken = 0, broken

    def __next__(self):
        if self.number + 1 == self.broken:
            raise ValueError(f"record {self.broken} is broken")
        self.number += 1
        return self.number

    def get_state(self):
        return {"examples": self.number}


@contextlib.contextmanager
def prefetched(loader, place=lambda x: x):
    batches = Prefetch(loader, place)
    try:
        yield batches
    finally:
        batches.close()


def test_the_position_is_that_of_the_last_batch_taken():
    loader = Loader()
    with prefetched(loader, lambda x: 10 * x) as batches:
        assert batches.get_state() == {"examples": 0}
        batches.fetch()
        batches.fetch()
        assert batches.get_state() == {"examples": 0}
        assert batches.take() == 10 and batches.get_state() == {"examples": 1}
        batches.fetch()
        batches.fetch()
        assert batches.get_state() == {"examples": 1}
        assert [batches.take(), batches.take()] == [20, 30] and batches.get_state() == {"examples": 3}


def test_closing_waits_for_the_loader():
    begun, log = threading.Event(), []

    def place(number):
        begun.set()
        time.sleep(0.2)
        log.append(number)

    with prefetched(Loader(), place) as batches:
        batches.fetch()
        assert begun.wait(60)
    assert log == [1] and batches.get_state() == {"examples": 0}


def test_an_error_waits_for_its_turn():
    with prefetched(Loader(broken=2)) as batches:
        assert batches.take() == 1
        batches.fetch()
        assert batches.get_state() == {"examples": 1}  # the step on batch 1 can still be saved
        with pytest.raises(ValueError, match="record 2 is broken"):
            batches.take()
        assert batches.get_state() == {"examples": 1}


class Pending:
    """A result on a device: reading it means to wait."""

    def __init__(self, events, step):
        self.events, self.step = events, step

    def __array__(self, dtype=None, copy=None):
        self.events.append(f"read {self.step}")
        return np.asarray(1.0, dtype)


def run_loop(place, compute, steps: int) -> list[str]:
    """The training loop around a step that is not computed: when it was called, and when its results were read."""
    events = []

    class State:
        step = 0  # read once, before the first step

    def step_function(state, batch):
        number = int(batch.split()[1])
        assert state is State and number == len([e for e in events if e.startswith("step")]) + 1
        events.append(f"step {number}")
        compute(number)
        return State, StepMetrics(Pending(events, number), dict.fromkeys(OF_LABELS, Pending(events, number)),
                                  Pending(events, number), Pending(events, number))  # fmt: skip

    run = object.__new__(loop._Run)
    train = config_lib.TrainConfig(steps=steps, log_every=3, eval_every=0, checkpoint_every=100)
    run.task = SimpleNamespace(loss_parts=OF_LABELS, stop_reason=lambda evaluations: None)
    run.workdir = pathlib.Path("a folder that is not there")
    run.config, run.step_function, run.pending = config_lib.Config(train=train), step_function, []
    run.learning_rate, run.best, run.loader = lambda step: 0.0, float("nan"), Loader()
    run.reporter = SimpleNamespace(train=lambda *_: None, say=lambda *_: None, pause=lambda: None)
    run.evaluate, run.save = lambda *_: {}, lambda *_: None
    with prefetched(Loader(), place) as run.batches:
        run.steps(State, SimpleNamespace(at=lambda step: False, signal=None))
    return list(dict.fromkeys(events))


def test_the_loop_reads_nothing_between_log_points():
    assert run_loop(lambda number: f"batch {number}", lambda number: None, steps=5) == [
        "step 1", "step 2", "step 3", "read 1", "read 2", "read 3", "step 4", "step 5", "read 4", "read 5",
    ]  # fmt: skip


def test_the_next_batch_is_placed_while_a_step_computes():
    """Though the step only returns when it is done. After the last step there is no next batch."""
    placed = [threading.Event() for _ in range(6)]

    def place(number):
        placed[number].set()
        return f"batch {number}"

    def compute(number):
        assert number == 4 or placed[number + 1].wait(60), f"step {number} ends before batch {number + 1} is there"

    run_loop(place, compute, steps=4)
    assert not placed[5].is_set()


def test_batches_are_committed_to_their_devices():
    """So that a step need not move them."""
    from rahf.config import MeshConfig
    from rahf.training import sharding
    from tests.helpers.model_maker import fake

    mesh = sharding.make_mesh(MeshConfig())
    with prefetched(_Stated(iter([fake()])), lambda batch: sharding.to_devices(batch, mesh)) as batches:
        taken = batches.take()
    assert all(isinstance(x, jax.Array) and x.committed for x in taken)


class _Stated:
    def __init__(self, iterator):
        self.iterator = iterator

    def __next__(self):
        return next(self.iterator)

    def get_state(self):
        return {}
