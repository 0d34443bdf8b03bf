"""One batch ahead: what is taken when, what a checkpoint says of it, and that nothing waits between log points."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from rahf import config as config_lib
from rahf.losses import Parts
from rahf.train import loop
from rahf.train.prefetch import Prefetch
from rahf.train.step import StepMetrics


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


def test_the_position_is_that_of_the_last_batch_taken():
    loader = Loader()
    batches = Prefetch(loader, lambda x: 10 * x)
    assert batches.get_state() == {"examples": 0}
    batches.fetch()
    assert loader.number == 1 and batches.get_state() == {"examples": 0}
    assert batches.take() == 10 and batches.get_state() == {"examples": 1}
    batches.fetch()
    batches.fetch()
    assert loader.number == 2 and batches.get_state() == {"examples": 1}
    assert [batches.take(), batches.take()] == [20, 30] and batches.get_state() == {"examples": 3}


def test_an_error_waits_for_its_turn():
    batches = Prefetch(Loader(broken=2), lambda x: x)
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


def test_the_loop_reads_nothing_between_log_points():
    """And the next batch is on its way to the devices before a log point waits."""
    events = []

    class State:
        step = 0  # read once, before the first step

    def step_function(state, batch):
        assert state is State and batch == f"batch {len([e for e in events if e.startswith('step')]) + 1}"
        number = int(batch.split()[1])
        events.append(f"step {number}")
        return State, StepMetrics(*[Pending(events, number)] * 1, Parts(*[Pending(events, number)] * 3),
                                  Pending(events, number), Pending(events, number))  # fmt: skip

    def place(number):
        events.append(f"place {number}")
        return f"batch {number}"

    run = object.__new__(loop._Run)
    train = config_lib.TrainConfig(steps=5, log_every=3, eval_every=0, checkpoint_every=100)
    run.config = config_lib.Config(train=train)
    run.batches, run.step_function, run.pending = Prefetch(Loader(), place), step_function, []
    run.learning_rate, run.best = lambda step: 0.0, float("nan")
    run.reporter = SimpleNamespace(train=lambda *_: None, say=lambda *_: None, pause=lambda: None)
    run.evaluate, run.save = lambda *_: {}, lambda *_: None
    run.steps(State, SimpleNamespace(at=lambda step: False, signal=None))
    order = list(dict.fromkeys(events))
    assert order == [
        "place 1", "step 1", "place 2", "step 2", "place 3", "step 3", "place 4",
        "read 1", "read 2", "read 3", "step 4", "place 5", "step 5", "read 4", "read 5",
    ]  # fmt: skip


def test_batches_are_committed_to_their_devices():
    """So that a step need not move them."""
    from model_maker import fake

    from rahf.config import MeshConfig
    from rahf.train import sharding

    mesh = sharding.make_mesh(MeshConfig())
    batches = Prefetch(_Stated(iter([fake()])), lambda batch: sharding.to_devices(batch, mesh))
    taken = batches.take()
    assert all(isinstance(x, jax.Array) and x.committed for x in taken)


class _Stated:
    def __init__(self, iterator):
        self.iterator = iterator

    def __next__(self):
        return next(self.iterator)

    def get_state(self):
        return {}
