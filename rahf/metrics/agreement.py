"""How far people agree: Krippendorff's alpha, kappa of words, overlap of marks, largest differences of scores.

A missing answer is NaN; every measure uses the units that at least two people answered.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rahf.core.errors import ArgumentError

if TYPE_CHECKING:  # whoever only reads an exported model does without
    from jaxtyping import Bool, Float, Integer

LEVELS = ("nominal", "ordinal", "interval")


def krippendorff_alpha(ratings: Float[np.ndarray, "U R"], level: str = "ordinal", rater: int | None = None) -> float:
    """Krippendorff's alpha: 1 = everybody agrees, 0 = as by chance, negative = less than by chance.

    alpha = 1 - D_o / D_e over the coincidences of two different people's values of a unit (Krippendorff, Content
    Analysis, chapter 11; "Computing Krippendorff's alpha-reliability", 2011). A unit of m values weighs m: each of its
    ordered pairs counts 1 / (m - 1).

    Args:
      ratings: float [U,R], values of R people for U units; NaN where there is none.
      level: "nominal", "ordinal" or "interval": what a difference is.
      rater: only pairs with this person count, each with the weight 1 / (m - 1); None: all.

    Returns:
      alpha; NaN where no unit has two values, or all values are equal, so that chance would agree, too.

    Raises:
      ArgumentError: an unknown level, a rater who is not there, an infinite value, or not two axes.
    """
    values = np.asarray(ratings, np.float64)
    if level not in LEVELS:
        raise ArgumentError(f"level {level!r}: expected {', '.join(LEVELS)}")
    if values.ndim != 2 or np.isinf(values).any():
        raise ArgumentError(f"ratings: expected finite values or NaN of shape [units, people], found {values.shape}")
    if rater is not None and not 0 <= rater < values.shape[1]:
        raise ArgumentError(f"rater {rater}: expected 0 to {values.shape[1] - 1}")
    coincidences, scale = _coincidences(values, rater)
    totals = coincidences.sum(0)
    count = totals.sum()
    if count <= 0:
        return float("nan")
    distance = _squared_distance(scale, totals, level)
    observed = (coincidences * distance).sum() / count
    # Whose values are drawn by chance: without replacement, so count - 1 partners are left.
    expected = (np.outer(totals, totals) * distance).sum() / (count * (count - 1)) if count > 1 else 0.0
    return float(1 - observed / expected) if expected > 0 else float("nan")


def _coincidences(values: np.ndarray, rater: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Coincidences [V,V] of values, and the V different values in order."""
    present = ~np.isnan(values)
    people = present.sum(1)
    usable = people > 1
    if rater is not None:
        usable &= present[:, rater]
    values, present, people = values[usable], present[usable], people[usable]
    scale = np.unique(values[present])
    if not len(scale):
        return np.zeros((0, 0)), scale
    index = np.searchsorted(scale, np.where(present, values, scale[0]))
    counts = np.zeros((len(values), len(scale)))  # people per unit and value
    rows = np.broadcast_to(np.arange(len(values))[:, None], values.shape)
    np.add.at(counts, (rows[present], index[present]), 1)
    weights = 1 / (people - 1)
    if rater is None:
        pairs = (counts * weights[:, None]).T @ counts
        pairs -= np.diag((counts * weights[:, None]).sum(0))  # nobody is paired with themselves
        return pairs, scale
    own = np.zeros_like(counts)
    own[np.arange(len(values)), index[:, rater]] = 1
    one_way = (own * weights[:, None]).T @ (counts - own)
    return one_way + one_way.T, scale


def _squared_distance(scale: np.ndarray, totals: np.ndarray, level: str) -> np.ndarray:
    if level == "nominal":
        return 1.0 - np.eye(len(scale))
    if level == "interval":
        return np.square(scale[:, None] - scale[None, :])
    # Ordinal: the number of values between two ranks, half of those at both ends included.
    middle = np.cumsum(totals) - totals / 2
    return np.square(middle[:, None] - middle[None, :])


def fleiss_kappa(labels: Float[np.ndarray, "U R"]) -> float:
    """Fleiss' kappa (Fleiss 1971) for any number of people per unit, which may differ.

    kappa = (P - P_e) / (1 - P_e). P is the mean over units with at least two values of the share of their pairs that
    agree; P_e is the sum of squares of the mean shares of each label in those units.

    Args:
      labels: float [U,R], such as word labels: 1 aligned, 0 misaligned, NaN no answer.

    Returns:
      kappa; NaN where no unit has two values or only one label occurs.
    """
    values = np.asarray(labels, np.float64)
    present = ~np.isnan(values)
    usable = present.sum(1) > 1
    values, present = values[usable], present[usable]
    if not usable.any():
        return float("nan")
    people = present.sum(1)
    counts = np.stack([(values == label).sum(1) for label in np.unique(values[present])], 1)
    agreeing = ((counts * (counts - 1)).sum(1) / (people * (people - 1))).mean()
    chance = np.square((counts / people[:, None]).mean(0)).sum()
    return float((agreeing - chance) / (1 - chance)) if chance < 1 else float("nan")


def cohen_kappa_with_others(labels: Float[np.ndarray, "U R"], rater: int) -> float:
    """Cohen's kappa of one person with each of the others, their pairs pooled.

    Args:
      labels: float [U,R], NaN where there is no answer.
      rater: the person's column.

    Returns:
      (p_o - p_e) / (1 - p_e) over all pairs of the person's label and another one's label of the same unit; NaN where
      there is no pair, or both only ever give one and the same label.
    """
    values = np.asarray(labels, np.float64)
    own, others = values[:, rater], np.delete(values, rater, axis=1)
    own = np.broadcast_to(own[:, None], others.shape)
    both = ~np.isnan(own) & ~np.isnan(others)
    own, others = own[both], others[both]
    if not len(own):
        return float("nan")
    observed = (own == others).mean()
    expected = sum((own == label).mean() * (others == label).mean() for label in np.union1d(own, others))
    return float((observed - expected) / (1 - expected)) if expected < 1 else float("nan")


class PairOverlap(NamedTuple):
    """How far the marks of two people cover the same pixels.

    Attributes:
      iou: intersection over union; NaN where nobody marked anything.
      dice: 2 * intersection / (sum of both areas); NaN likewise.
      both_empty: whether nobody marked anything: they agree that nothing is wrong.
    """

    iou: float
    dice: float
    both_empty: bool


def pair_overlap(first: Bool[np.ndarray, "*s"], second: Bool[np.ndarray, "*s"]) -> PairOverlap:
    """Overlap of two people's binary maps of one shape.

    Raises:
      ArgumentError: the shapes differ.
    """
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    if first.shape != second.shape:
        raise ArgumentError(f"maps of different shapes: {first.shape} and {second.shape}")
    return pair_overlaps(np.stack([first, second]))[0]


def pair_overlaps(maps: Bool[np.ndarray, "R ..."]) -> list[PairOverlap]:
    """Overlaps of all pairs of people's binary maps [R, …], in the order of `itertools.combinations`."""
    flat = np.asarray(maps, bool).reshape(len(maps), -1).astype(np.float32)
    common = flat @ flat.T  # counts below 2^24 are exact in float32
    return [
        _overlap(int(common[i, j]), int(common[i, i] + common[j, j]))
        for i, j in itertools.combinations(range(len(maps)), 2)
    ]


def _overlap(common: int, areas: int) -> PairOverlap:
    if not areas:
        return PairOverlap(float("nan"), float("nan"), True)
    return PairOverlap(common / (areas - common), 2 * common / areas, False)


class MaxDifferences(NamedTuple):
    """Largest differences of a score within the units (spec 2.2 of RichHF-18K: max - min of the standardised scores).

    Attributes:
      edges: float [5], the differences 0, 0.25, 0.5, 0.75 and 1 of a scale of five steps.
      counts: int [5], units with each difference.
    """

    edges: np.ndarray
    counts: np.ndarray

    @property
    def equal(self) -> float:
        """Share of the units where everybody gave the same score; NaN without a unit. The paper: about 0.25."""
        return self._share(1)

    @property
    def within_one_step(self) -> float:
        """Share of the units with a difference of at most 0.25; NaN without a unit. The paper: about 0.85."""
        return self._share(2)

    def _share(self, steps: int) -> float:
        total = int(self.counts.sum())
        return float(self.counts[:steps].sum() / total) if total else float("nan")


def max_differences(ratings: Float[np.ndarray, "U R"] | Integer[np.ndarray, "U R"]) -> MaxDifferences:
    """Histogram of max - min, as a share of the scale, over the units with at least two values.

    Args:
      ratings: [U,R] of 1..5; NaN where there is none.

    Raises:
      ArgumentError: a value that is no whole number 1..5.
    """
    values = np.asarray(ratings, np.float64)
    present = ~np.isnan(values)
    if not np.isin(values[present], (1, 2, 3, 4, 5)).all():
        raise ArgumentError("ratings: expected whole numbers 1 to 5, or NaN")
    usable = present.sum(1) > 1
    values, present = values[usable], present[usable]
    highest = np.where(present, values, 0).max(1, initial=0)
    lowest = np.where(present, values, 9).min(1, initial=9)
    steps = (highest - lowest).astype(int)
    return MaxDifferences(np.arange(5) / 4, np.bincount(steps, minlength=5)[:5])
