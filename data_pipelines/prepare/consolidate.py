"""Consolidation: the annotations of one picture → one label per picture.

The rules are those of the RichHF-18K paper (Liang et al. 2024, section 3): a click stands for a disc whose
radius is 1/20 of the picture's height; an annotator's map is the union of the discs, the label is the
mean of the annotators' binary maps; scores are averaged and standardised to 0..1; words are decided by
majority. Real annotations and the synthetic scenes use the same functions.

`consolidate` needs every label of every annotator. Where annotators gave only some labels, call `vote_heatmap`,
`mean_score` and `majority` with the annotators who gave the label.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rahf.core.batch import SCORES
from rahf.core.errors import DataError

#: A disc's radius as a share of the picture's height, also for pictures that are not square.
RADIUS = 1 / 20
#: Scores are given on a scale of five steps.
LOWEST, HIGHEST = 1, 5

Point = tuple[float, float]


class RawAnnotation(NamedTuple):
    """The labels that one annotator gave to one picture.

    Points are (x, y) in pixels of the picture as shown, origin at its upper left corner: the centre of the first
    pixel is (0.5, 0.5). `scores` holds integers 1..5 (high = good) by name of
    `rahf.core.batch.SCORES`. `word_labels` has one 0 (misaligned) or 1 (aligned) per word of the prompt.
    """

    points_implausible: Sequence[Point]
    points_misaligned: Sequence[Point]
    scores: Mapping[str, int]
    word_labels: Sequence[int]

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any], where: str = "annotation") -> RawAnnotation:
        """Builds an annotation from parsed JSON with the fields of this class.

        Raises:
          DataError: a field is missing or unknown; the message starts with `where`.
        """
        missing, unknown = set(cls._fields) - set(tree), set(tree) - set(cls._fields)
        if missing or unknown:
            raise DataError(
                f"{where}: expected the fields {', '.join(cls._fields)}; "
                f"missing: {', '.join(sorted(missing)) or 'none'}, "
                f"unknown: {', '.join(sorted(unknown)) or 'none'}"
            )
        return cls(**tree)


class Consolidated(NamedTuple):
    """The consolidated labels of one picture."""

    heatmaps: np.ndarray  # uint8 [h,w,2] order rahf.core.batch.HEATMAPS, round(255 * share of annotators)
    scores: np.ndarray  # float32 [4] in [0,1], order rahf.core.batch.SCORES
    word_labels: tuple[int, ...]  # 1 = aligned, 0 = misaligned by majority; a tie is aligned
    word_votes: np.ndarray  # float32 [K] share of annotators who called the word aligned
    maxdiff: np.ndarray  # float32 [4] spread (max - min) of the annotators' standardised scores
    annotators: int


def draw_discs(points: Sequence[Point], width: int, height: int, map_size: int | None = None) -> np.ndarray:
    """Binary map of one annotator's clicks: the union of their discs, clipped at the borders.

    A pixel belongs to a disc if its centre does, border included. On a map of another size the disc is
    scaled with the picture: it stays round on a square picture and becomes an ellipse otherwise. A disc that is smaller
    than the pixels of the map marks the pixel under the click, so that no click is lost.

    Args:
      points: (x, y) in pixels of the picture.
      width, height: of the picture in pixels.
      map_size: side of a square map; None: the map has the picture's size.

    Returns:
      bool [height,width] or [map_size,map_size].

    Raises:
      DataError: a coordinate is not finite.
    """
    columns, rows = (width, height) if map_size is None else (map_size, map_size)
    scale_x, scale_y = columns / width, rows / height
    radius_x, radius = height * RADIUS * scale_x, height * RADIUS * scale_y
    squeeze = radius / radius_x
    marked = np.zeros((rows, columns), np.bool_)
    for x, y in points:
        if not (math.isfinite(x) and math.isfinite(y)):
            raise DataError(f"point ({x}, {y}): expected two finite coordinates in pixels of the picture")
        x, y = x * scale_x, y * scale_y
        # Test only the pixels of the square around the disc; one pixel more guards against rounding.
        left, right = _range(x, radius_x, columns)
        top, bottom = _range(y, radius, rows)
        if left >= right or top >= bottom:
            continue
        across = ((np.arange(left, right) + 0.5 - x) * squeeze) ** 2
        down = (np.arange(top, bottom) + 0.5 - y) ** 2
        disc = down[:, None] + across <= radius**2
        marked[top:bottom, left:right] |= disc
        if not disc.any() and 0 <= x <= columns and 0 <= y <= rows:
            marked[min(int(y), rows - 1), min(int(x), columns - 1)] = True
    return marked


def _range(centre: float, radius: float, size: int) -> tuple[int, int]:
    """First pixel, and the one behind the last, of an interval along a side."""
    return max(0, math.floor(centre - radius - 1)), min(size, math.ceil(centre + radius + 1))


def vote_heatmap(clicks: Sequence[Sequence[Point]], width: int, height: int, map_size: int | None = None) -> np.ndarray:
    """Mean of the annotators' binary maps.

    Args:
      clicks: one list of points per annotator, in pixels of the picture; at least one annotator.
      width, height, map_size: as in `draw_discs`.

    Returns:
      uint8 [h,w]: round(255 * share of annotators who marked the pixel), at least 1 if any did; 0, 85, 170, 255 for
      three.
    """
    votes = sum(draw_discs(points, width, height, map_size).astype(np.intp) for points in clicks)
    level = np.round(255 * np.arange(len(clicks) + 1) / len(clicks)).astype(np.uint8)
    level[1:] = np.maximum(level[1:], 1)  # one of more than 510 annotators is not nobody
    return level[votes]


def mean_score(raw: np.ndarray) -> np.ndarray:
    """Mean s of the annotators, standardised as (s - 1) / 4.

    Args:
      raw: [n] or [n,k], scores 1..5 of n annotators.

    Returns:
      float32 scalar or [k] in [0,1].
    """
    return ((np.asarray(raw, np.float64).mean(axis=0) - LOWEST) / (HIGHEST - LOWEST)).astype(np.float32)


def majority(labels: np.ndarray) -> tuple[int, ...]:
    """Word labels by majority; a tie is aligned.

    Args:
      labels: [n,k], 1 (aligned) or 0 (misaligned) of n annotators for k words.
    """
    return tuple(int(label) for label in 2 * np.asarray(labels).sum(axis=0).astype(np.int64) >= len(labels))


def consolidate(
    annotations: Sequence[RawAnnotation],
    width: int,
    height: int,
    words: Sequence[str],
    map_size: int | None = None,
) -> Consolidated:
    """Consolidates any number of annotations.

    Args:
      annotations: at least one.
      width, height: of the picture that the annotators saw, in pixels.
      words: of the prompt, by `rahf.text.split_words`.
      map_size: side of square heatmaps (the released dataset: 512); None: the picture's size.

    Returns:
      Heatmaps, scores (mean s of the annotators as (s - 1) / 4), word labels and agreement.

    Raises:
      DataError: no annotator, a score that is no integer 1..5, or labels that do not fit the words.
    """
    if not annotations:
        raise DataError("no annotations: expected at least one annotator")
    if min(width, height) < 1:
        raise DataError(f"picture of {width}x{height} pixels: expected at least 1x1")
    raw = np.array([_scores(one, number) for number, one in enumerate(annotations)], np.float64)
    labels = np.array([_labels(one, number, len(words)) for number, one in enumerate(annotations)])
    votes = labels.sum(axis=0).astype(np.int64)
    maps = [
        vote_heatmap([one.points_implausible for one in annotations], width, height, map_size),
        vote_heatmap([one.points_misaligned for one in annotations], width, height, map_size),
    ]
    step = HIGHEST - LOWEST
    return Consolidated(
        heatmaps=np.stack(maps, axis=-1),
        scores=mean_score(raw),
        word_labels=majority(labels),
        word_votes=(votes / len(annotations)).astype(np.float32),
        maxdiff=((raw.max(axis=0) - raw.min(axis=0)) / step).astype(np.float32),
        annotators=len(annotations),
    )


def _scores(annotation: RawAnnotation, number: int) -> list[int]:
    values = [annotation.scores.get(name) for name in SCORES]
    for name, value in zip(SCORES, values):
        if value not in range(LOWEST, HIGHEST + 1):
            raise DataError(f"annotator {number}: score {name!r} is {value!r}, expected an integer {LOWEST}..{HIGHEST}")
    return values


def _labels(annotation: RawAnnotation, number: int, count: int) -> list[int]:
    labels = list(annotation.word_labels)
    if len(labels) != count:
        raise DataError(f"annotator {number}: {len(labels)} word labels for {count} words of the prompt")
    if any(label not in (0, 1) for label in labels):
        raise DataError(f"annotator {number}: word labels {labels}, expected 0 (misaligned) or 1 (aligned)")
    return labels
