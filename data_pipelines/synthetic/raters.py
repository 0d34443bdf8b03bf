"""Simulated annotators: three of a pool annotate a scene, each with an own bias, noise and care."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from data_pipelines.prepare.consolidate import HIGHEST, LOWEST, RADIUS, RawAnnotation
from data_pipelines.synthetic.damage import VISIBLE, Damage
from data_pipelines.synthetic.layout import Box
from rahf.core.batch import SCORES

POOL, PER_SCENE = 24, 3
_POOL_SEED = 20240601  # the annotators are the same for every data set


@dataclasses.dataclass(frozen=True)
class Rater:
    """One annotator's habits."""

    bias: tuple[float, ...]  # steps of the scale, per score
    noise: float  # standard deviation of a rating, in steps
    care: float  # about 1; multiplies the number of clicks, divides the rate of misses
    jitter: float  # standard deviation of a click, as share of the side
    slip: float  # probability that a word label is set wrongly
    stray: float  # probability of a click at a random place


@functools.cache
def raters() -> tuple[Rater, ...]:
    """The pool of annotators."""
    rng = np.random.default_rng(_POOL_SEED)
    return tuple(
        Rater(
            bias=tuple(rng.normal(0, 0.28, len(SCORES))),
            noise=rng.uniform(0.3, 0.6),
            care=rng.uniform(0.8, 1.25),
            jitter=rng.uniform(0.008, 0.018),
            slip=rng.uniform(0.003, 0.02),
            stray=rng.uniform(0.01, 0.05),
        )
        for _ in range(POOL)
    )


def annotate(
    rng: np.random.Generator,
    side: int,
    damages: Sequence[Damage],
    boxes: Sequence[Box],
    word_labels: Sequence[int],
    quality: Sequence[float],
    aspect: float = 1.0,
) -> tuple[RawAnnotation, ...]:
    """The annotations of a scene by three annotators of the pool.

    Args:
      rng: source of randomness.
      side: height of the picture in pixels.
      damages: damaged regions.
      boxes: misaligned places, as shares of the height.
      word_labels: true labels.
      quality: true qualities in [0,1], in order of `SCORES`.
      aspect: width divided by height. Places are shares of the height in both directions.

    Returns:
      Their annotations; points in pixels of the picture.
    """
    chosen = rng.choice(POOL, PER_SCENE, replace=False)
    return tuple(_judge(raters()[i], rng, side, damages, boxes, word_labels, quality, aspect) for i in chosen)


def _judge(rater, rng, side, damages, boxes, word_labels, quality, aspect) -> RawAnnotation:
    implausible: list[tuple[float, float]] = []
    for damage in damages:
        missed = (0.02 + 0.35 * math.exp(-(damage.visibility - VISIBLE) / 0.04)) / rater.care
        if rng.random() >= missed:
            implausible += _spread(rater, rng, damage)
    if rng.random() < rater.stray:
        implausible.append(tuple(rng.random(2) * (aspect, 1.0)))
    misaligned: list[tuple[float, float]] = []
    for x0, y0, x1, y1 in boxes:
        if rng.random() >= 0.08 / rater.care:
            for _ in range(1 + (rng.random() < 0.5)):
                middle = ((x0 + x1) / 2, (y0 + y1) / 2)
                misaligned.append(tuple(rng.normal(middle, (0.1 * (x1 - x0), 0.1 * (y1 - y0)))))
    words = np.array(word_labels, np.int64)
    overlooked = (words == 0) & (rng.random(len(words)) < 0.06 / rater.care)
    slipped = rng.random(len(words)) < rater.slip
    words = np.where(overlooked, 1, words) ^ slipped
    felt = LOWEST + (HIGHEST - LOWEST) * np.asarray(quality) + rater.bias
    steps = np.round(felt + rng.normal(0, rater.noise, len(SCORES)))
    scores = np.clip(steps, LOWEST, HIGHEST).astype(np.int64)
    return RawAnnotation(
        points_implausible=_pixels(implausible, side, aspect),
        points_misaligned=_pixels(misaligned, side, aspect),
        scores=dict(zip(SCORES, scores.tolist())),
        word_labels=tuple(words.tolist()),
    )


def _spread(rater: Rater, rng: np.random.Generator, damage: Damage) -> list[tuple[float, float]]:
    """Clicks that cover a region about evenly: a sunflower pattern with jitter."""
    count = max(1, round(0.75 * rater.care * damage.area / (math.pi * RADIUS**2)))
    index = np.arange(count) + 0.5
    turn = index * 2.39996 + rng.uniform(0, 2 * np.pi)
    away = 0.8 * damage.radius * np.sqrt(index / count)
    x = damage.x + away * np.cos(turn) + rng.normal(0, rater.jitter, count)
    y = damage.y + away * np.sin(turn) + rng.normal(0, rater.jitter, count)
    return list(zip(x.tolist(), y.tolist()))


def _pixels(points: Sequence[tuple[float, float]], side: int, aspect: float) -> tuple[tuple[float, float], ...]:
    """Points in pixels, clipped to the picture, rounded to one decimal."""
    return tuple((round(min(max(x, 0.0), aspect) * side, 1), round(min(max(y, 0.0), 1.0) * side, 1)) for x, y in points)
