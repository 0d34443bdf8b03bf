"""Best-of-N repair: repaint the part of a picture that the critic marks, several times, and keep the best.

The original is among the candidates, so that the result is never scored worse. This module does not import JAX.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from rahf.core import labels
from rahf.core.batch import HEATMAPS, SCORES
from rahf.core.errors import ArgumentError
from rahf.images import inputs, pictures
from rahf.steer import masks
from rahf.steer.masks import Mask, MaskOptions

#: Function of image uint8 [h,w,3], mask bool [h,w] (True: repaint), prompt, seed → image of the same size, in any form
#: that `repair` takes.
Inpaint = Callable[[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"], str, int], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Repair:
    """Result of `repair`.

    Attributes:
      image: uint8 [h,w,3], the candidate with the highest score; the original itself if none beats it.
      chosen: its position in `candidates`; 0 is the original.
      candidates: uint8 [h,w,3] each: the original, then one per seed. Only the original if the mask is empty.
      scores: float32 [len(candidates),4], order `rahf.core.batch.SCORES`.
      seeds: of candidates 1, 2, …
      mask: the region that was repainted.
      reason: a sentence that says why this candidate was chosen.
    """

    image: UInt8[np.ndarray, "h w 3"]
    chosen: int
    candidates: list[UInt8[np.ndarray, "h w 3"]]
    scores: Float[np.ndarray, "n 4"]
    seeds: list[int]
    mask: Mask
    reason: str


def repair(
    generate: Inpaint,
    image: Any,
    prompt: str,
    n: int = 4,
    *,
    critic: Callable[..., Any],
    seed: int = 0,
    options: MaskOptions = MaskOptions(),
    which: str = "implausibility",
    score: str = "plausibility",
    blend: bool = True,
) -> Repair:
    """Repaints the marked part of a picture `n` times and returns the best of these and the original.

    Args:
      generate: any inpainting: (image uint8 [h,w,3], mask bool [h,w] with True = repaint, prompt, seed) → image.
      image: path, encoded bytes, Pillow image, or array [h,w,3] (uint8, or float in [0,1]).
      prompt: of the picture.
      n: number of repaintings, with the seeds `seed`, `seed + 1`, …
      critic: of `rahf.load`, or any function with its arguments and result.
      seed: the first one.
      options: how the heatmap becomes a mask.
      which: the heatmap that says where: a name in `rahf.core.batch.HEATMAPS`.
      score: by which the best is chosen: a name in `rahf.core.batch.SCORES`.
      blend: lay the repainted picture over the original through the mask (its `alpha`), so that nothing else
        changes; latent diffusion changes the rest slightly. False takes the output of `generate`, of any size.

    Returns:
      The result. The candidates are scored in one call. If none is scored higher than the original, the original is
      returned, so the result is never scored worse; of equal candidates the first is taken; a candidate whose score
      is NaN is never taken. If the mask is empty, `generate` is not called.

    Raises:
      NotPredicted: the critic does not predict the heatmap or the score.
      ValueError: an unknown name, n below 1, a path where the prompt belongs, or (with `blend`) a repainted picture
        of another size.
      rahf.images.ImageError: an image that cannot be used.
    """
    heatmap_column = labels.position("heatmap", which, HEATMAPS)
    score_column = labels.position("score", score, SCORES)
    if n < 1:
        raise ArgumentError(f"n: expected at least 1 candidate, found {n}")
    inputs.check_order([image], prompt, "rahf.steer.repair(generate, image, prompt, critic=critic)")
    if (outputs := getattr(critic, "outputs", None)) is not None:
        outputs.check_heatmap(which)
        outputs.check_score(score)
    original = _rgb(image, "image")
    prediction = critic([original], prompt)
    mask = masks.from_heatmap(np.asarray(prediction.heatmaps)[0, :, :, heatmap_column], original.shape[:2], options)
    if mask.empty:
        reason = f"unchanged: nothing to repair, {mask.note}"
        return Repair(original, 0, [original], np.asarray(prediction.scores), [], mask, reason)
    seeds = [seed + k for k in range(n)]
    candidates = [original]
    for one in seeds:
        # `generate` gets copies, so that it cannot change the original among the candidates.
        output = generate(original.copy(), mask.pixels.copy(), prompt, one)
        repainted = _rgb(output, f"what generate made of seed {one}")
        candidates.append(_blended(original, repainted, mask, one) if blend else repainted)
    scores = np.asarray(critic(candidates, prompt).scores)
    chosen = _best(scores[:, score_column])
    reason = _why(scores[:, score_column], chosen, score, seeds)
    return Repair(candidates[chosen], chosen, candidates, scores, seeds, mask, reason)


def _best(scores: Sequence[float]) -> int:
    """Position of the highest score, the first of equal ones; NaN counts as -inf."""
    return int(np.argmax([-math.inf if math.isnan(value) else value for value in scores]))


def _why(scores: np.ndarray, chosen: int, name: str, seeds: Sequence[int]) -> str:
    if chosen == 0:
        return f"unchanged: none of {len(seeds)} candidates has a higher {name} than the original's {scores[0]:.4f}"
    return (
        f"seed {seeds[chosen - 1]}: {name} {scores[chosen]:.4f}, the highest of {len(seeds)} candidates; "
        f"the original has {scores[0]:.4f}"
    )


def _rgb(image: Any, what: str) -> np.ndarray:
    """Any image as upright uint8 [h,w,3]."""
    return np.ascontiguousarray(pictures.rgb(image, what)[0])


def _blended(original: np.ndarray, repainted: np.ndarray, mask: Mask, seed: int) -> np.ndarray:
    if repainted.shape != original.shape:
        (h, w), (h2, w2) = original.shape[:2], repainted.shape[:2]
        raise ArgumentError(
            f"generate made a picture of {w2} x {h2} pixels for seed {seed}, the original has {w} x {h}; "
            "resize it there, or use blend=False"
        )
    alpha = mask.alpha[:, :, None]
    return (original * (1 - alpha) + repainted * alpha).round().astype(np.uint8)
