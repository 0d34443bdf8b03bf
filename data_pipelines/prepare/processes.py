"""Work of a preparation spread over processes, results in order."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from typing import Any


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
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

        try:
            yield apply
        finally:
            pool.shutdown(cancel_futures=True)
