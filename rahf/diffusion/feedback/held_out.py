"""Reward hacking: the reward that guides goes on rising while one that was held out falls (Gao et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from rahf.core.errors import ArgumentError


class Hacking(NamedTuple):
    """Where two curves part: numbers of evaluations, and the rewards there.

    Attributes:
      best: the evaluation at which the held-out reward was highest.
      guiding, held_out: (at `best`, at the last evaluation).
    """

    best: int
    guiding: tuple[float, float]
    held_out: tuple[float, float]

    def __str__(self) -> str:
        """One sentence for the log."""
        return (
            f"reward hacking: since evaluation {self.best} the guiding reward rose from {self.guiding[0]:.4f} to "
            f"{self.guiding[1]:.4f}, and the held-out reward fell from {self.held_out[0]:.4f} to {self.held_out[1]:.4f}"
        )


def find_hacking(
    guiding: Sequence[float], held_out: Sequence[float], patience: int = 2, tolerance: float = 0.0
) -> Hacking | None:
    """Whether training should stop after the last evaluation.

    It should if in each of the last `patience` evaluations the held-out reward is lower than its best so far by more
    than `tolerance`, while the guiding reward is higher than it was then. Both falling, or both rising, is none.

    Args:
      guiding, held_out: rewards at each evaluation, in order; higher is better.
      patience: how many evaluations in a row must agree.
      tolerance: the least fall that counts, such as the half-width of a confidence interval.

    Raises:
      ArgumentError: curves of different lengths, or that are not finite; a patience below 1; a negative tolerance.
    """
    if len(guiding) != len(held_out):
        raise ArgumentError(f"curves: expected the same evaluations, found {len(guiding)} and {len(held_out)}")
    if not all(math.isfinite(value) for value in (*guiding, *held_out)):
        raise ArgumentError("curves: expected finite rewards, found NaN or infinity")
    if patience < 1 or not tolerance >= 0:
        raise ArgumentError(
            f"expected patience of at least 1 and tolerance of at least 0, found {patience}, {tolerance}"
        )
    if not len(guiding):
        return None
    best = max(range(len(held_out)), key=lambda number: held_out[number])  # the first of equal ones
    last = range(len(held_out) - patience, len(held_out))
    if last[0] <= best:
        return None
    for number in last:
        if held_out[number] >= held_out[best] - tolerance or guiding[number] <= guiding[best]:
            return None
    return Hacking(best, (guiding[best], guiding[-1]), (held_out[best], held_out[-1]))
