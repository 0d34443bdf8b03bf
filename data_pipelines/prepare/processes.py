"""Work of a preparation spread over processes, results in order."""

from __future__ import annotations

import collections
import concurrent.futures
import concurrent.futures.process
import contextlib
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from rahf.core.errors import WorkerFailure


@contextlib.contextmanager
def mapper(function: Callable[[Any], Any], workers: int) -> Iterator[Callable[[Iterable[Any]], Iterator[Any]]]:
    """Yields a function that applies `function` to jobs in order, in this process or in `workers` others.

    Args:
      function: of one job; with workers it and the jobs must be picklable.
      workers: number of processes; 0: this one.
    """
    if not workers:
        yield lambda jobs: map(function, jobs)
        return
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=spawn) as pool:

        def apply(jobs: Iterable[Any]) -> Iterator[Any]:
            waiting = collections.deque()  # bounded: otherwise a slow disk lets it fill the memory
            for job in jobs:
                waiting.append(pool.submit(function, job))
                if len(waiting) > 3 * workers:
                    yield result(waiting.popleft())
            while waiting:
                yield result(waiting.popleft())

        def result(job: concurrent.futures.Future) -> Any:
            try:
                return job.result()
            except concurrent.futures.process.BrokenProcessPool as error:
                raise WorkerFailure(
                    f"one of {workers} processes died, usually because the machine ran out of memory; give fewer "
                    "--workers, or 0, which also shows what it died of"
                ) from error

        try:
            yield apply
        finally:
            pool.shutdown(cancel_futures=True)
