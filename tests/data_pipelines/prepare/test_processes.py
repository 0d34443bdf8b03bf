"""Work spread over processes: results in order, and a process that dies is an error of one line."""

import concurrent.futures.process

import pytest

from data_pipelines.prepare import processes
from rahf.core.errors import WorkerFailure


class Pool:
    """Stands for a pool whose second job kills its process."""

    def __init__(self, workers, mp_context):
        self.jobs = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, job):
        future, self.jobs = concurrent.futures.Future(), self.jobs + 1
        if self.jobs < 2:
            future.set_result(function(job))
        else:
            future.set_exception(concurrent.futures.process.BrokenProcessPool("a process was terminated abruptly"))
        return future

    def shutdown(self, cancel_futures):
        pass


def test_a_process_that_dies_is_named(monkeypatch):
    monkeypatch.setattr(processes.concurrent.futures, "ProcessPoolExecutor", Pool)
    with processes.mapper(str, 2) as apply:
        results = apply(range(3))
        assert next(results) == "0"
        with pytest.raises(
            WorkerFailure, match="one of 2 processes died, usually because .* memory; give fewer --work"
        ):
            next(results)


def test_without_workers_in_this_process():
    with processes.mapper(str, 0) as apply:
        assert list(apply(range(3))) == ["0", "1", "2"]
