"""Agreement of a predicted density with where people looked: AUC, NSS, CC, KLD, SIM, information gain, EMD.

A picture gives one value of each metric; the means over pictures are the result. Location metrics count every fixation,
also several on one pixel. Readings:

* ``auc_judd``: negatives are the pixels without a fixation; ``auc_judd_all``: all pixels (as in `pysaliency`). Both are
  exact Mann-Whitney statistics, a tie counts one half.
* ``auc_borji``: negatives are as many random pixels as there are fixations, 100 draws, thresholds in steps of 0.1 of
  the map scaled to 0..1 (Borji et al. 2013). Its coarse thresholds make it lower than the others for peaked maps.
* ``sauc``: negatives are the fixations on other pictures (Zhang et al. 2008); all of them, so nothing is drawn.
* ``nss`` divides by the standard deviation with N. ``cc``, ``kld`` (nats) and ``sim`` as `rahf.metrics.heatmaps`, with
  the epsilon of the MIT benchmark, between densities of sum 1.
* ``information_gain``: mean of log2 p - log2 prior at the fixations, bits a fixation (Kümmerer et al. 2015).
* ``emd``: the earth mover's distance on a coarse grid, in shares of the picture's diagonal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rahf.core.errors import ArgumentError, DataError, NotFinite
from rahf.metrics.accumulator import Accumulator, weighted_mean
from rahf.metrics.heatmaps import MIT_EPS, HeatmapOptions, auc_judd, cc_and_nss, kld_and_sim

if TYPE_CHECKING:  # whoever only reads an exported model does without
    from jaxtyping import Float

#: Metrics of one picture, in the order of the last axis.
PER_PICTURE = (
    "auc_judd", "auc_judd_all", "auc_borji", "sauc", "nss", "cc", "kld", "sim", "information_gain", "emd",
)  # fmt: skip
_OPTIONS = HeatmapOptions(eps=MIT_EPS)
_BORJI_DRAWS, _BORJI_STEP = 100, 0.1
_EMD_CELLS = 12  # along the longer side: the linear program of a finer grid takes minutes
_SUM_SLACK = 1e-3


class Fixated(NamedTuple):
    """Where people looked at one picture.

    Attributes:
      points: float [F,2], x and y in shares of the picture's width and height; None: not recorded.
      density: float [H,W] of any sum above 0; None: not known.
    """

    points: np.ndarray | None
    density: np.ndarray | None


class Pool(NamedTuple):
    """The fixations on many pictures, negatives of ``sauc``: float [P,2] shares, and int [P] of which picture."""

    points: np.ndarray
    picture: np.ndarray

    def without(self, index: int) -> np.ndarray:
        """The fixations on the other pictures, float [Q,2]."""
        return self.points[self.picture != index]


def pool_of(points: Sequence[np.ndarray | None]) -> Pool:
    """The pool of a split: fixations by picture, in the order of the split."""
    present = [(number, one) for number, one in enumerate(points) if one is not None and len(one)]
    if not present:
        return Pool(np.zeros((0, 2)), np.zeros(0, np.int64))
    pictures = np.concatenate([np.full(len(one), number) for number, one in present])
    return Pool(np.concatenate([np.asarray(one, np.float64)[:, :2] for _, one in present]), pictures)


class SaliencyMetrics(Accumulator):
    """`saliency/<name>` for the names of `PER_PICTURE`, and counts; mergeable, with intervals by `bootstrap`.

    Attributes:
      pool: negatives of ``sauc``; None: it is NaN.
      prior: (height, width) → log-density [H,W] that the information gain is measured over, such as of
        `centre_prior`; None: the uniform density.
      emd: compute it; else it is NaN. It takes about half a second a picture.
    """

    def __init__(
        self,
        pool: Pool | None = None,
        prior: Callable[[tuple[int, int]], np.ndarray] | None = None,
        emd: bool = False,
        seed: int = 0,
    ):
        super().__init__()
        self.pool, self.prior, self.emd, self.seed = pool, prior, emd, seed

    def update(self, log_densities: Sequence[np.ndarray], truths: Sequence[Fixated], index: Sequence[int]) -> None:
        """Adds pictures.

        Args:
          log_densities: natural logarithms [H,W] of densities that sum to 1 over the picture's pixels.
          truths: where people looked.
          index: position in the split; negative for filling.

        Raises:
          NotFinite: a prediction is not finite, or no density.
          DataError: a fixation outside the picture, or an all-zero density.
        """
        values = np.full((len(index), len(PER_PICTURE)), np.nan)
        fixations = np.zeros(len(index), np.int64)
        for row, (prediction, truth, number) in enumerate(zip(log_densities, truths, index)):
            if number < 0:
                continue
            negatives = None if self.pool is None else self.pool.without(int(number))
            prior = None if self.prior is None else self.prior(np.shape(prediction))
            values[row] = picture_metrics(
                prediction, truth, negatives, prior, self.emd, (self.seed, int(number)), f"example {int(number)}"
            )
            fixations[row] = 0 if truth.points is None else len(truth.points)
        self._add(np.asarray(index), values=values, fixations=fixations)

    def _empty(self) -> dict[str, np.ndarray]:
        return {"values": np.zeros((0, len(PER_PICTURE))), "fixations": np.zeros(0, np.int64)}

    def statistics(self, weights: Float[np.ndarray, "R N"]) -> dict[str, Float[np.ndarray, " R"]]:
        values = self.to_arrays()["values"]
        keep = np.ones(len(values), bool)
        return {
            f"saliency/{name}": weighted_mean(values[:, column], keep, weights)
            for column, name in enumerate(PER_PICTURE)
        }

    def counts(self) -> dict[str, float]:
        fixations = self.to_arrays()["fixations"]
        return {"saliency/count": float(len(fixations)), "saliency/fixations": float(fixations.sum())}


def picture_metrics(
    log_density: np.ndarray,
    truth: Fixated,
    negatives: np.ndarray | None = None,
    prior: np.ndarray | None = None,
    emd: bool = False,
    seed: Sequence[int] = (0,),
    name: str = "map",
) -> Float[np.ndarray, " 10"]:
    """The metrics of one picture, columns `PER_PICTURE`; NaN where what they need is missing.

    Args:
      log_density: [H,W], its exponential sums to 1.
      truth: where people looked.
      negatives: float [Q,2] shares, fixations on other pictures.
      prior: log-density [H,W] of the information gain; None: uniform.
      emd: compute the earth mover's distance.
      seed: of the draws of ``auc_borji``.
      name: for messages.

    Raises:
      NotFinite, DataError: as `SaliencyMetrics.update`.
    """
    logs = np.asarray(log_density, np.float64)
    p = np.exp(logs)
    if not np.isfinite(logs).all() or abs(p.sum() - 1) > _SUM_SLACK:
        raise NotFinite(f"{name}: expected the logarithm of a density of sum 1, found a sum of {p.sum():g}")
    result = dict.fromkeys(PER_PICTURE, np.nan)
    if truth.points is not None and len(truth.points):
        cells = places(truth.points, p.shape, name)
        others = None if negatives is None or not len(negatives) else places(negatives, p.shape, name)
        result |= _location_metrics(logs, p, cells, others, prior, seed)
    if truth.density is not None:
        g = np.asarray(truth.density, np.float64)
        if g.shape != p.shape:
            raise DataError(f"{name}: the density has shape {g.shape}, the prediction {p.shape}; resize one of them")
        if not (g.min() >= 0 and g.sum() > 0):
            raise DataError(f"{name}: a true density must not be negative, and not 0 everywhere")
        g = g / g.sum()
        where = np.flatnonzero(g)
        x, marks = p.ravel(), g.ravel()[where]
        result["cc"] = cc_and_nss(x, where, marks, bool(x.min() == x.max()), _OPTIONS)[0]
        result["kld"], result["sim"] = kld_and_sim(x, where, marks, _OPTIONS)
        if emd:
            result["emd"] = earth_movers_distance(p, g)
    return np.array([result[key] for key in PER_PICTURE])


def _location_metrics(
    logs: np.ndarray,
    p: np.ndarray,
    cells: tuple[np.ndarray, np.ndarray],
    others: tuple[np.ndarray, np.ndarray] | None,
    prior: np.ndarray | None,
    seed: Sequence[int],
) -> dict[str, float]:
    positives, flat = logs[cells], logs.ravel()
    hit = np.zeros(p.shape, bool)
    hit[cells] = True
    deviation = p.std()
    gain = logs[cells] - (-np.log(p.size) if prior is None else np.asarray(prior, np.float64)[cells])
    return {
        "auc_judd": auc_judd(positives, logs[~hit]),
        "auc_judd_all": auc_judd(positives, flat),
        "auc_borji": auc_borji(p, cells, np.random.default_rng(list(seed))),
        "sauc": np.nan if others is None else auc_judd(positives, logs[others]),
        "nss": 0.0 if p.min() == p.max() else float((p[cells] - p.mean()).mean() / deviation),
        "information_gain": float(gain.mean() / np.log(2)),
    }


def places(points: np.ndarray, shape: tuple[int, int], name: str = "map") -> tuple[np.ndarray, np.ndarray]:
    """Row and column of the pixel of each fixation.

    Args:
      points: float [F,2], x and y in shares; the far edges belong to the last pixel.

    Raises:
      DataError: a fixation outside of 0..1.
    """
    points = np.asarray(points, np.float64)[:, :2]
    if not ((points >= 0) & (points <= 1)).all():
        raise DataError(
            f"{name}: fixations must be in shares of the picture, 0 to 1; found {points.min()} to {points.max()}"
        )
    row, column = (np.minimum((points[:, axis] * side).astype(np.int64), side - 1) for axis, side in zip((1, 0), shape))
    return row, column


def auc_borji(p: np.ndarray, cells: tuple[np.ndarray, np.ndarray], rng: np.random.Generator) -> float:
    """AUC against random pixels, by the trapezoidal rule over thresholds in steps of 0.1, mean of 100 draws."""
    low, high = p.min(), p.max()
    if low == high:
        return 0.5
    scaled = (p - low) / (high - low)
    positives = scaled[cells]
    draws = scaled.ravel()[rng.integers(0, p.size, (_BORJI_DRAWS, len(positives)))]
    top = np.maximum(positives.max(), draws.max(1))
    areas = []
    for drawn, largest in zip(draws, top):
        thresholds = np.arange(0, largest + _BORJI_STEP / 2, _BORJI_STEP)[::-1]
        hits = [0.0, *(positives[:, None] >= thresholds).mean(0), 1.0]
        alarms = [0.0, *(drawn[:, None] >= thresholds).mean(0), 1.0]
        areas.append(np.trapezoid(hits, alarms))
    return float(np.mean(areas))


def earth_movers_distance(p: np.ndarray, g: np.ndarray, cells: int = _EMD_CELLS) -> float:
    """Least mean distance over which density p is moved to become g, in shares of the picture's diagonal.

    Both are summed on a grid of square cells, `cells` along the longer side; the transport problem is solved exactly.
    """
    from scipy import optimize, sparse  # takes long to load

    step = max(p.shape) / cells
    grid = tuple(max(1, round(side / step)) for side in p.shape)
    a, b = (_summed(x, grid).ravel() for x in (p, g))
    a, b = a / a.sum(), b / b.sum()
    rows, columns = np.divmod(np.arange(a.size), grid[1])
    y, x = (rows + 0.5) / grid[0] * p.shape[0], (columns + 0.5) / grid[1] * p.shape[1]
    distance = np.hypot(y[:, None] - y, x[:, None] - x) / np.hypot(*p.shape)
    count = a.size
    sums = sparse.vstack(
        [sparse.kron(sparse.eye(count), np.ones((1, count))), sparse.kron(np.ones((1, count)), sparse.eye(count))]
    )
    # One equation follows from the others; without it rounding could make the problem infeasible.
    solution = optimize.linprog(
        distance.ravel(), A_eq=sums.tocsr()[:-1], b_eq=np.concatenate([a, b])[:-1], method="highs"
    )
    if not solution.success:
        raise NotFinite(f"emd: the transport problem was not solved ({solution.message})")
    return float(solution.fun)


def _summed(x: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Sums over the cells of a grid; a pixel belongs to the cell of its centre."""
    row, column = (((np.arange(side) + 0.5) * cells / side).astype(int) for side, cells in zip(x.shape, grid))
    result = np.zeros(grid)
    np.add.at(result, (row[:, None], column[None, :]), x)
    return result


def gaussian_density(points: np.ndarray, shape: tuple[int, int], sigma: float, uniform: float = 0.0) -> np.ndarray:
    """Log-density [H,W] of Gaussians around points, mixed with the uniform density.

    Args:
      points: float [F,2] in shares.
      shape: height and width of the picture.
      sigma: standard deviation in shares of the longer side.
      uniform: weight of the uniform density, which keeps the logarithm finite.
    """
    points = np.asarray(points, np.float64)
    if not len(points) or not sigma > 0 or not 0 <= uniform <= 1:
        raise ArgumentError(f"density: expected points, sigma > 0 and a weight in 0..1, found {len(points)}, {sigma}")
    deviation, factors = sigma * max(shape), []
    for column, side in zip((1, 0), shape):
        centres = np.arange(side) + 0.5
        factors.append(np.exp(-0.5 * np.square((centres - side * points[:, column, None]) / deviation)))
    density = factors[0].T @ factors[1]
    density = (1 - uniform) * density / density.sum() + uniform / density.size
    return np.log(np.maximum(density, np.finfo(np.float64).tiny))


def centre_prior(pool: Pool, sigma: float, most: int = 20_000) -> Callable[[tuple[int, int]], np.ndarray]:
    """The density of all fixations of a pool, whatever the picture: (height, width) → log-density.

    Args:
      pool: of the training pictures.
      sigma: standard deviation in shares of the longer side.
      most: of more fixations every n-th is taken.
    """
    points = pool.points[:: max(1, -(-len(pool.points) // most))]
    by_shape: dict[tuple[int, int], np.ndarray] = {}

    def prior(shape: tuple[int, int]) -> np.ndarray:
        if shape not in by_shape:
            by_shape[shape] = gaussian_density(points, shape, sigma, uniform=1e-3)
        return by_shape[shape]

    return prior


def uniform(shape: tuple[int, int]) -> np.ndarray:
    """The log-density that is the same everywhere."""
    return np.full(shape, -np.log(shape[0] * shape[1]))


def viewers_against_the_rest(
    points: np.ndarray,
    viewer: np.ndarray,
    shape: tuple[int, int],
    sigma: float,
    negatives: np.ndarray | None = None,
    prior: np.ndarray | None = None,
    mix: float = 0.1,
) -> Float[np.ndarray, " 10"]:
    """How well the fixations of all but one viewer predict that one's: means over the viewers of one picture.

    Args:
      points, viewer: float [F,2] in shares, and number of each one's viewer.
      shape, sigma: of the density of the others.
      negatives, prior: as of `picture_metrics`.
      mix: weight of the prior in the density of the others, of the uniform one without a prior.

    Returns:
      The columns of `PER_PICTURE`; those that compare densities are NaN. All NaN with fewer than two viewers.
    """
    rows = []
    for one in np.unique(viewer):
        own, others = points[viewer == one], points[viewer != one]
        if not len(others):
            continue
        logs = gaussian_density(others, shape, sigma)
        base = uniform(shape) if prior is None else prior
        logs = np.logaddexp(np.log1p(-mix) + logs, np.log(mix) + base)
        logs -= np.log(np.exp(logs).sum())
        rows.append(picture_metrics(logs, Fixated(own, None), negatives, prior))
    return np.mean(rows, 0) if rows else np.full(len(PER_PICTURE), np.nan)
