"""The next batch is on its way to the devices while they work on this one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from rahf.core.batch import Batch


class _Fetched(NamedTuple):
    batch: Any
    state: dict[str, Any]  # of the loader behind this batch


class Prefetch:
    """Batches of a loader, one ahead, loaded and copied by a thread of its own.

    The loop takes a batch, asks for the next one, and calls the step. So loading hides behind the step, whether the
    step returns before it is computed, as on accelerators, or after, as where the calling thread computes.
    """

    def __init__(self, loader: Iterator[Batch], place: Callable[[Batch], Batch]):
        """`loader` has `get_state()`, the position behind the last batch; `place` puts a batch on the devices."""
        self._loader, self._place = loader, place
        self._thread = ThreadPoolExecutor(1, "rahf-prefetch")
        self._next: Future[_Fetched] | None = None
        self._state: dict[str, Any] | None = None

    def fetch(self) -> None:
        """Begins to load the next batch and to copy it, unless that was done; does not wait.

        Errors are raised by `take`: by then what the step before has led to is safe.
        """
        if self._next is not None:
            return
        if self._state is None:
            self._state = self._loader.get_state()
        self._next = self._thread.submit(self._fetch)

    def _fetch(self) -> _Fetched:
        batch = self._place(next(self._loader))
        return _Fetched(batch, self._loader.get_state())

    def take(self) -> Batch:
        """The next batch, on the devices.

        Raises:
          whatever loading it raised.
        """
        self.fetch()
        try:
            fetched = self._next.result()
        finally:
            self._next = None
        self._state = fetched.state
        return fetched.batch

    def get_state(self) -> dict[str, Any]:
        """The loader's position behind the last batch taken, to go on from there."""
        return self._loader.get_state() if self._state is None else self._state

    def close(self) -> None:
        """Waits until the loader is left alone: only then may it be closed."""
        self._thread.shutdown(cancel_futures=True)
