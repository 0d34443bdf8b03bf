"""A shuffled stream of any examples: parts of processes, a position that can be saved, and batches in order."""

import grain
import numpy as np
import pytest

from data_pipelines.loading import stream
from data_pipelines.loading.stream import StreamLoader
from rahf.core.errors import ConfigError, DataError

IDENTITY = {"seed": 3, "records": 5, "fingerprint": "abc"}


def loader(process=0, processes=1, size=4):
    examples = grain.MapDataset.range(5).shuffle(stream.shuffle_seed(3)).repeat()
    return StreamLoader(examples, np.stack, size, IDENTITY, process, processes)


def test_a_stream():
    with loader() as whole, loader(0, 2) as first, loader(1, 2) as second:
        batches = [next(whole) for _ in range(5)]
        np.testing.assert_array_equal(np.concatenate([next(first), next(second)]), batches[0])
        state = whole.get_state()
        following = next(whole)
    numbers = np.concatenate(batches)
    assert sorted(numbers[:5]) == sorted(numbers[5:10]) == list(range(5)) and state == {"examples": 20, **IDENTITY}
    with loader() as again:
        again.set_state(state)
        np.testing.assert_array_equal(next(again), following)
        for changed in ({"seed": 4}, {"examples": -1}, {"examples": None}):
            with pytest.raises(DataError, match="belongs to other data or another seed"):
                again.set_state(state | changed)
    with pytest.raises(ConfigError, match="batch size 3: expected a multiple of the number of processes, 2"):
        loader(0, 2, 3)
    with pytest.raises(ConfigError, match="no such process"):
        loader(2, 2)


def test_in_order():
    """The last batch is filled up; a process gets its part; without examples there is one batch of filling."""
    batches = lambda *process: [b.tolist() for b in stream.in_order(int, 5, -1, np.array, 4, *process)]  # noqa: E731
    assert batches() == [[0, 1, 2, 3], [4, -1, -1, -1]]
    assert batches(0, 2) == [[0, 1], [4, -1]] and batches(1, 2) == [[2, 3], [-1, -1]]
    assert [b.tolist() for b in stream.in_order(int, 0, -1, np.array, 2)] == [[-1, -1]]
