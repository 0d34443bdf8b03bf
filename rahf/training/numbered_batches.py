"""Loaders whose batches follow from their numbers alone: the position in the data is how many there have been."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any, Self

from rahf.core import names, terminal
from rahf.core.errors import DataError


class NumberedBatches:
    """What such loaders have in common of `rahf.training.task.Loader`; a subclass adds `__next__`.

    Attributes:
      report: called with what the user should know.
    """

    def __init__(self, seed: int, identity: list[Any], what: str):
        """Args:
        seed: of the order.
        identity: values of JSON that say which data in which batches these are.
        what: name of the data in errors.
        """
        self._seed, self._batches, self._what = seed % 2**32, 0, what
        fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        self._identity = {"seed": int(seed), "fingerprint": fingerprint}
        self.report: Callable[[str], None] = lambda line: terminal.say(names.one_line(line), stderr=True)

    def get_state(self) -> dict[str, Any]:
        """The number of batches so far, and the identity of the data, as JSON values."""
        return {"batches": self._batches, **self._identity}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on where `get_state` was called. Raises DataError: it belongs to other data or another seed."""
        batches, identity = state.get("batches"), {name: state.get(name) for name in self._identity}
        if identity != self._identity or not isinstance(batches, int) or batches < 0:
            raise DataError(
                f"the saved position belongs to other {self._what}, another batch size or another seed; give the "
                "original ones, or start in a new run directory"
            )
        self._batches = batches

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        return None
