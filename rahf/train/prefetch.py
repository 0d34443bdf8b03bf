"""The next batch is on its way to the devices while they work on this one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from rahf.batch import Batch


class _Fetched(NamedTuple):
    batch: Any
    state: dict[str, Any]  # of the loader behind this batch
    error: Exception | None


class Prefetch:
    """Batches of a loader, one ahead.

    A step only starts when it is called; it runs on the devices while the host goes on. So the loop takes a batch,
    calls the step, and then fetches: loading and copying hide behind the step, also before a log point waits for it.
    """

    def __init__(self, loader: Iterator[Batch], place: Callable[[Batch], Batch]):
        """`loader` has `get_state()`, the position behind the last batch; `place` puts a batch on the devices."""
        self._loader, self._place = loader, place
        self._next: _Fetched | None = None
        self._state: dict[str, Any] | None = None

    def fetch(self) -> None:
        """Loads the next batch and begins to copy it, unless that was done.

        Errors are raised by `take`: by then what the step before has led to is safe.
        """
        if self._next is not None:
            return
        if self._state is None:
            self._state = self._loader.get_state()
        try:
            batch = self._place(next(self._loader))
            self._next = _Fetched(batch, self._loader.get_state(), None)
        except Exception as error:
            self._next = _Fetched(None, self._state, error)

    def take(self) -> Batch:
        """The next batch, on the devices.

        Raises:
          whatever loading it raised.
        """
        self.fetch()
        fetched, self._next = self._next, None
        if fetched.error is not None:
            raise fetched.error
        self._state = fetched.state
        return fetched.batch

    def get_state(self) -> dict[str, Any]:
        """The loader's position behind the last batch taken, to go on from there."""
        return self._loader.get_state() if self._state is None else self._state
