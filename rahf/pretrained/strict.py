"""Takes tensors out of a checkpoint by name and shape; nothing is guessed, left over or left random."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any

import numpy as np

from rahf.core.errors import PretrainedError
from rahf.nn import functional
from rahf.pretrained.files import StoredTensor

_MOST_LINES = 24


class Taker:
    """Hands out tensors in `rahf`'s layout; remembers which were missing, misshapen, not finite or never asked for.

    Problems are collected, so that one error lists all of them; until `finish` has passed, what was
    taken must not be used.
    """

    def __init__(self, stored: Mapping[str, StoredTensor], where: str, prefix: str = ""):
        """`where` is the file or folder for messages; `prefix` is put before every name."""
        self._stored, self._where, self._prefix = stored, where, prefix
        self._taken: set[str] = set()
        self._problems: list[str] = []

    def under(self, prefix: str) -> "Taker":
        """The same checkpoint seen from a deeper prefix; both share one record of problems."""
        deeper = Taker(self._stored, self._where, self._prefix + prefix)
        deeper._taken, deeper._problems = self._taken, self._problems
        return deeper

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._stored

    def names(self) -> list[str]:
        """Names behind the prefix, in the checkpoint's order."""
        return [n.removeprefix(self._prefix) for n in self._stored if n.startswith(self._prefix)]

    def rank(self, name: str) -> int:
        """How many dimensions a tensor has that is there."""
        return len(self._stored[self._prefix + name].shape)

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        """The shape of a tensor that sizes are inferred from.

        Raises:
          PretrainedError: there is no such tensor, or it has another number of dimensions.
        """
        stored = self._stored.get(self._prefix + name)
        if stored is None or len(stored.shape) != rank:
            problem = "missing" if stored is None else f"has shape {stored.shape}"
            raise PretrainedError(
                f"{self._where}: {self._prefix + name} {problem}, expected {rank} dimensions: "
                "these weights belong to another kind of network"
            )
        return stored.shape

    def count(self, pattern: str, step: int = 1) -> int:
        """How many of the numbers 0, step, 2·step, … in place of ``{}`` give the name of a tensor."""
        number = 0
        while pattern.format(number * step) in self:
            number += 1
        return number

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The tensor as float32; zeros if it is not as expected, which `finish` will then report."""
        name = self._prefix + name
        self._taken.add(name)
        stored = self._stored.get(name)
        problem = None
        if stored is None:
            problem = f"missing, expected shape {shape}"
        elif stored.shape != tuple(shape):
            problem = f"shape {stored.shape}, expected {tuple(shape)} (in {stored.file})"
        else:
            value = stored.load()
            if value.dtype != np.float32:
                problem = f"{stored.dtype}, expected a float type (in {stored.file})"
            elif not np.isfinite(value).all():
                bad = int((~np.isfinite(value)).sum())
                problem = f"{bad} of {value.size} values are NaN or infinite (in {stored.file})"
            else:
                return value
        self._problems.append(f"{name}: {problem}")
        return np.broadcast_to(np.float32(0), shape)

    def linear(self, name: str, inputs: int, outputs: int, *, bias: bool = True) -> functional.Params:
        """A dense layer: weight [outputs, inputs] → kernel [inputs, outputs]."""
        params = {"kernel": np.ascontiguousarray(self.take(f"{name}.weight", (outputs, inputs)).T)}
        return {**params, "bias": self.take(f"{name}.bias", (outputs,))} if bias else params

    def conv(self, name: str, inputs: int, outputs: int, size: int = 3) -> functional.Params:
        """A square convolution with bias: weight [outputs, inputs, y, x] → kernel [y, x, inputs, outputs]."""
        kernel = self.take(f"{name}.weight", (outputs, inputs, size, size)).transpose(2, 3, 1, 0)
        return {"kernel": np.ascontiguousarray(kernel), "bias": self.take(f"{name}.bias", (outputs,))}

    def norm(self, name: str, width: int) -> functional.Params:
        """A layer normalization with scale and bias."""
        return {"scale": self.take(f"{name}.weight", (width,)), "bias": self.take(f"{name}.bias", (width,))}

    def rms_norm(self, name: str, width: int) -> functional.Params:
        """A norm with a scale only."""
        return {"scale": self.take(f"{name}.weight", (width,))}

    def copy_of(self, name: str, original: np.ndarray) -> None:
        """Checks that a tensor, if it is there, repeats another one that the network shares with it."""
        if name in self and not np.array_equal(self.take(name, original.shape), original):
            self._problems.append(f"{self._prefix + name}: differs from the tensor that it is said to share")

    def problem(self, name: str, what: str) -> None:
        """Notes what is wrong with a tensor, for `finish`."""
        self._problems.append(f"{self._prefix + name}: {what}")

    def drop(self, *patterns: str) -> None:
        """Declares tensors that this network has no use for; ``*`` stands for anything."""
        for pattern in patterns:
            self._taken.update(fnmatch.filter(self._stored, self._prefix + pattern))

    def finish(self) -> None:
        """Ends the taking.

        Raises:
          PretrainedError: listing by name every missing, misshapen, not finite or unknown tensor.
        """
        lines = list(self._problems)
        for name, stored in self._stored.items():
            if name not in self._taken:
                lines.append(f"{name}: not part of this network, shape {stored.shape} (in {stored.file})")
        if lines:
            more = [f"… and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else []
            raise PretrainedError(
                f"{self._where}: not the weights that this network needs:\n  "
                + "\n  ".join([*lines[:_MOST_LINES], *more])
            )


def compare(published: Any, configured: Any, fields: tuple[str, ...], place: str, where: str) -> None:
    """Refuses a published network whose sizes differ from the configured ones.

    Args:
      published, configured: structures of the same class, from the checkpoint and from the user's config.
      fields: names to compare.
      place: in the user's config, such as ``model.vit``.
      where: the checkpoint, for the message.

    Raises:
      PretrainedError: naming every field that differs, with both values.
    """
    lines = [
        f"{place}.{name} is {getattr(configured, name)!r}, the checkpoint has {getattr(published, name)!r}"
        for name in fields
        if getattr(configured, name) != getattr(published, name)
    ]
    if lines:
        raise PretrainedError(f"{where}: belongs to another network than the configured one:\n  " + "\n  ".join(lines))


def check_complete(params: functional.Params, expected: functional.Params, where: str) -> None:
    """Raises PretrainedError unless converted parameters are exactly those of the network."""
    lines = functional.parameter_differences(params, expected)
    if lines:
        raise PretrainedError(f"{where}: does not fill the network:\n  " + "\n  ".join(lines))
