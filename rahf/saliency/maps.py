"""What a saliency model says of one picture: log-density, a map to look at, a sketch of a scanpath. NumPy only."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rahf.images.letterbox import Frame
from rahf.images.resize import resize

if TYPE_CHECKING:  # jaxtyping is not installed where only exported models are read
    from jaxtyping import Float

#: Radius around a place that is not looked at again, in shares of the longer side: two degrees of OSIE's pictures.
_RADIUS = 0.06


class Glance(NamedTuple):
    """One place of a scanpath: x and y in pixels of the picture, and the share of the density around it."""

    x: float
    y: float
    mass: float


@dataclasses.dataclass(frozen=True)
class SaliencyMap:
    """Where people are predicted to look at one picture.

    Attributes:
      name: path of the picture, or "image 3".
      size: its height and width in pixels.
      cells: float32 [h,w] log-density over the network's cells inside the picture; exponentials sum to 1.
    """

    name: str
    size: tuple[int, int]
    cells: np.ndarray

    @functools.cached_property
    def log_density(self) -> Float[np.ndarray, "H W"]:
        """Natural logarithm of the density at the picture's size, float32; its exponential sums to 1."""
        return at_size(self.cells, self.size)

    @property
    def density(self) -> Float[np.ndarray, "H W"]:
        """The density at the picture's size, sum 1."""
        return np.exp(self.log_density)

    @property
    def heatmap(self) -> Float[np.ndarray, "H W"]:
        """The density divided by its largest value, in [0,1]: to look at, and to cut out what is salient."""
        return np.exp(self.log_density - self.log_density.max())

    @property
    def entropy(self) -> float:
        """In bits below the uniform density's: 0 where every place is as likely."""
        p = np.exp(self.cells.astype(np.float64))
        return float(math.log2(p.size) + (p * self.cells).sum() / math.log(2))

    def scanpath(self, count: int = 6) -> list[Glance]:
        """A sketch of the order in which places are looked at: the densest first, its surroundings are then left out.

        Winner-take-all with inhibition of return (Itti, Koch & Niebur 1998). It draws the map's peaks; the order of
        people's eyes was not learnt.
        """
        p = np.exp(self.cells.astype(np.float64))
        height, width = self.size
        y, x = ((np.arange(cells) + 0.5) * side / cells for cells, side in zip(p.shape, self.size))
        places = []
        for _ in range(count):
            row, column = np.unravel_index(p.argmax(), p.shape)
            if not p[row, column] > 0:
                break
            near = np.hypot(y[:, None] - y[row], x[None, :] - x[column]) <= _RADIUS * max(height, width)
            near[row, column] = True
            places.append(Glance(float(x[column]), float(y[row]), float(p[near].sum())))
            p[near] = 0
        return places

    def to_dict(self, count: int = 6) -> dict[str, Any]:
        """As JSON values."""
        return {
            "image": self.name,
            "width": self.size[1],
            "height": self.size[0],
            "bits_below_uniform": round(self.entropy, 4),
            "scanpath": [
                {"x": round(one.x, 1), "y": round(one.y, 1), "mass": round(one.mass, 4)} for one in self.scanpath(count)
            ],
        }


def at_size(cells: np.ndarray, size: tuple[int, int]) -> Float[np.ndarray, "H W"]:
    """A log-density over cells → one over pixels: interpolated bilinearly, then normalised."""
    logs = resize(np.asarray(cells, np.float32), size)
    top = logs.max()
    return logs - np.float32(top + math.log(np.exp(logs - top, dtype=np.float64).sum()))


def inside(grid: np.ndarray, frame: Frame) -> np.ndarray:
    """The cells of a canvas [h,w] that belong to the picture."""
    return grid[frame.slices()]
