"""Simulated viewers: where people without a task would look at a drawn scene, by a model that is written down here.

The density of fixations is

    p = 0.15 · centre + 0.85 · sum_o w_o · Gaussian(middle of object o, 0.2 · its diameter)
    w_o ~ sqrt(area of o) · contrast of o · rarity of o, divided by their sum

* centre: a Gaussian in the middle of the picture with a standard deviation of 0.18 of its side.
* contrast: distance in RGB between the object's middle and the ring around it, plus 0.1.
* rarity: 1 + log2(objects / objects of the same shape and colour): an odd one out is looked at more.

The parts and their signs are those of the literature on bottom-up attention (Itti, Koch & Niebur 1998; Tatler 2007);
the numbers are chosen, not fitted. A viewer's first fixation is drawn from the centre, the others from p. Viewers
differ in how many fixations they make in three seconds and in a constant error of the eye-tracker.
"""

from __future__ import annotations

import numpy as np

from data_pipelines.synthetic.scene import Scene, stream

CENTRE_WEIGHT, CENTRE_SIGMA, OBJECT_SIGMA = 0.15, 0.18, 0.2
_LEAST_CONTRAST = 0.1
_FIXATIONS = 8.0  # mean number in three seconds
_OFFSET, _MILLISECONDS = 0.008, 270.0
_PURPOSE = 3  # of the stream of randomness
#: Standard deviation of the density of simulated fixations, in shares of the side.
SIGMA = 0.03


def objects(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """The drawn objects and their weights.

    Returns:
      float64 [N,3] middle x, y and diameter in shares of the side, and float64 [N] weights of sum 1.
    """
    spots, kinds = [], []
    for group, places in zip(scene.plan.shown.groups, scene.spots):
        spots += places[: group.count]
        kinds += [(group.shape, group.colour)] * min(group.count, len(places))
    rarity = [1 + np.log2(len(kinds) / kinds.count(kind)) for kind in kinds]
    weights = [spot[2] * _contrast(scene.image, spot) * rare for spot, rare in zip(spots, rarity)]
    return np.array(spots, np.float64).reshape(-1, 3), np.array(weights) / max(sum(weights), 1e-12)


def _contrast(image: np.ndarray, spot: tuple[float, float, float]) -> float:
    """Distance between mean colours of an object's middle and of the ring around it, RGB in [0,1]."""
    side = image.shape[0]
    axis = (np.arange(side) + 0.5) / side
    away = np.hypot(axis[None, :] - spot[0], axis[:, None] - spot[1]) / spot[2]
    inside, ring = away < 0.3, (away > 0.6) & (away < 0.8)
    if not (inside.any() and ring.any()):
        return _LEAST_CONTRAST
    means = [image[place].mean(0) / 255 for place in (inside, ring)]
    return float(np.linalg.norm(means[0] - means[1])) + _LEAST_CONTRAST


def fixations(scene: Scene, seed: int, split: str, index: int, viewers: int) -> np.ndarray:
    """Simulated fixations, float32 [F,4] of the columns of `data_pipelines.store.records.FIXATION_COLUMNS`.

    Args:
      scene: the picture; seed, split and index are its own.
      viewers: how many people look; each makes at least two fixations.
    """
    rng = stream(seed, split, index, _PURPOSE)
    spots, weights = objects(scene)
    rows = []
    for viewer in range(viewers):
        count = 2 + int(rng.poisson(_FIXATIONS - 2))
        offset = rng.normal(0, _OFFSET, 2)
        for number in range(count):
            if number == 0 or not len(spots) or rng.random() < CENTRE_WEIGHT:
                place = rng.normal(0.5, CENTRE_SIGMA, 2)
            else:
                spot = spots[rng.choice(len(spots), p=weights)]
                place = rng.normal(spot[:2], OBJECT_SIGMA * spot[2])
            x, y = np.clip(place + offset, 0, 1) * scene.image.shape[0]
            rows.append((x, y, viewer, rng.gamma(4.0, _MILLISECONDS / 4.0)))
    return np.array(rows, np.float32)
