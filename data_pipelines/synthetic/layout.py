"""Places of objects: cells of a simple grid, so that objects never overlap, with jitter."""

from __future__ import annotations

import numpy as np

#: (x, y, size) of an object: its middle and its diameter, as shares of the picture's side.
Spot = tuple[float, float, float]
Box = tuple[float, float, float, float]  # x0, y0, x1, y1 as shares of the side

MARGIN = 0.03
_GRIDS: dict[int, tuple[tuple[tuple[float, float], ...], ...]] = {
    1: (((0.5, 0.5),),),
    2: (
        ((0.27, 0.5), (0.73, 0.5)),
        ((0.5, 0.27), (0.5, 0.73)),
        ((0.28, 0.28), (0.72, 0.72)),
        ((0.72, 0.28), (0.28, 0.72)),
    ),
    3: (
        ((0.27, 0.28), (0.73, 0.28), (0.5, 0.73)),
        ((0.27, 0.73), (0.73, 0.73), (0.5, 0.27)),
        ((0.28, 0.27), (0.28, 0.73), (0.72, 0.5)),
    ),
    4: (((0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73)),),
}  # arrangements of the middles of one to four objects in the square
_SIZES = {1: (0.34, 0.45), 2: (0.28, 0.4), 3: (0.26, 0.36), 4: (0.24, 0.34)}


def place(
    rng: np.random.Generator, counts: tuple[int, ...], relation: str | None, untrue: str | None = None
) -> list[list[Spot]]:
    """Spots of every object of one or two groups.

    Args:
      rng: source of randomness.
      counts: objects of each group; one group up to 4, each of two groups up to 3.
      relation: position of the first group relative to the second; None: a random one.
      untrue: a relation that must not hold in addition (an object above another may also be left of it).

    Returns:
      One list of spots per group.
    """
    if len(counts) == 1:
        return [_in_square(rng, counts[0])]
    relation = relation or ("left", "above")[rng.integers(2)]
    along_x = relation in ("left", "right")
    share = 0.5 + rng.uniform(-0.04, 0.04)
    first, second = (MARGIN, share), (share, 1 - MARGIN)
    if relation in ("right", "below"):
        first, second = second, first
    groups = [_in_strip(rng, n, span, along_x) for n, span in zip(counts, (first, second))]
    return _mirrored(groups, untrue) if untrue is not None and _holds(groups, untrue) else groups


def _in_square(rng: np.random.Generator, count: int) -> list[Spot]:
    grids = _GRIDS[count]
    low, high = _SIZES[count]
    size = rng.uniform(low, high)
    slack = (0.24 if count == 1 else 0.46 - size) / 2
    spots = []
    for x, y in grids[rng.integers(len(grids))]:
        dx, dy = rng.uniform(-slack, slack, 2)
        own = size * rng.uniform(0.94, 1.0)
        spots.append((_inside(x + dx, own), _inside(y + dy, own), own))
    return spots


def _in_strip(rng: np.random.Generator, count: int, span: tuple[float, float], along_x: bool) -> list[Spot]:
    """Objects one behind the other in a strip that covers `span` along one axis and the full range of the other."""
    width, cell = span[1] - span[0], (1 - 2 * MARGIN) / count
    size = min(rng.uniform(0.28, 0.42), 0.95 * width, 0.94 * cell)
    spots = []
    for number in range(count):
        own = size * rng.uniform(0.94, 1.0)
        across = rng.uniform(span[0] + own / 2, span[1] - own / 2)
        start = MARGIN + number * cell
        along = rng.uniform(start + own / 2, start + cell - own / 2)
        if count == 1:  # not too far into a corner
            along = 0.5 + 0.6 * (along - 0.5)
        spots.append((across, along, own) if along_x else (along, across, own))
    return spots


def _holds(groups: list[list[Spot]], relation: str) -> bool:
    """Whether the first group's middle lies on the named side of the second's."""
    axis = 0 if relation in ("left", "right") else 1
    first, second = (float(np.mean([spot[axis] for spot in group])) for group in groups)
    return first < second if relation in ("left", "above") else first > second


def _mirrored(groups: list[list[Spot]], relation: str) -> list[list[Spot]]:
    """The groups mirrored along the axis of the relation."""
    flip_x = relation in ("left", "right")
    return [[(1 - x, y, s) if flip_x else (x, 1 - y, s) for x, y, s in group] for group in groups]


def _inside(value: float, size: float) -> float:
    return float(np.clip(value, MARGIN + size / 2, 1 - MARGIN - size / 2))
