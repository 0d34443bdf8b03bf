"""Energies of a critic: what guidance lowers. One number per picture, lower is better, differentiable in the pixels.

    plausible = energy.score(critic, prompts, "plausibility")             # 1 - score
    calm = energy.heatmap(critic, prompts, "implausibility", mask=hands)  # mean of the heatmap inside a mask
    total = plausible + 0.5 * calm + 0.1 * energy.function(my_energy, target)
    total(pixels)                                                         # float32 [B]

`Energy`, and the energies of any function or reward, are those of `rahf.nn.energy`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rahf.core import labels
from rahf.core.batch import HEATMAPS, SCORES
from rahf.core.errors import ArgumentError
from rahf.nn.energy import Energy, function, of, reward

Text = str | Sequence[str] | tuple[Int[Array, "b L"], Bool[Array, "b L"]]


def score(critic: Any, text: Text, score: str | Mapping[str, float] = "overall", params: Any = None) -> Energy:
    """``1 - score``, or ``sum of w (1 - score)`` for weights by name.

    Args:
      critic: of `rahf.load`, a run or an exported file; or any object with its functions
        ``tokens(prompts)`` and ``scores(pixels, text_ids, text_mask, params)``.
      text: prompt for all pictures, one prompt per picture, or (text_ids, text_mask) of `critic.tokens`.
      score: a name of `rahf.core.batch.SCORES`, or weights by name.
      params: of the critic; None: its own.

    Raises:
      NotPredicted: the critic does not predict the score, or one of those with a weight.
      ValueError: an unknown score; suggests the nearest.
    """
    weights = labels.weights(score)
    if (outputs := getattr(critic, "outputs", None)) is not None:
        outputs.check_score(score)
    columns = tuple(np.flatnonzero(weights).tolist())
    name = f"1 - {score}" if isinstance(score, str) else "scores"
    scores = _Scores(critic.scores, columns)
    return of(scores, name, weights[list(columns)], *_tokens(critic, text), _params(critic, params))


def heatmap(
    critic: Any,
    text: Text,
    which: str = "implausibility",
    mask: Float[Array, "... h w"] | Bool[Array, "... h w"] | None = None,
    params: Any = None,
) -> Energy:
    """How much of a picture is marked: the mean of a heatmap, or its mean inside a mask, in [0,1].

    Args:
      critic: as in `score`; its function is ``heatmaps(pixels, text_ids, text_mask, params)``.
      text: as in `score`.
      which: a name of `rahf.core.batch.HEATMAPS`.
      mask: [h,w] for all pictures or [B,h,w], bool or weights in [0,1]; of any size, brought to the heatmap's
        by averaging. ``1 - mask`` looks at the rest. None: everywhere.
      params: of the critic; None: its own.

    Raises:
      NotPredicted: the critic does not predict this heatmap.
      ValueError: an unknown heatmap (suggests the nearest); a mask of another shape, range, or without any
        pixel.
    """
    column = labels.position("heatmap", which, HEATMAPS)
    if (outputs := getattr(critic, "outputs", None)) is not None:
        outputs.check_heatmap(which)
    arrays = () if mask is None else (_checked_mask(mask),)
    name = which if mask is None else f"{which} in mask"
    return of(_Heatmap(critic.heatmaps, column), name, *_tokens(critic, text), _params(critic, params), *arrays)


def clip_distance(critic: Any, text: Text, params: Any = None) -> Energy:
    """The squared spherical distance of picture and prompt in a CLIP: ``2 asin(|u - v| / 2)²`` of unit vectors u, v.

    It is 0 for the same direction and ``pi² / 2`` for opposite ones (the loss of DOODL, spec 4.2).

    Args:
      critic: of `rahf.load` of a CLIP, imported or trained by `loss.contrastive`; its alignment is (1 + cosine) / 2.
      text: as in `score`.
      params: of the critic; None: its own.

    Raises:
      ArgumentError: a critic whose alignment is no cosine.
    """
    clip = getattr(getattr(getattr(critic, "config", None), "model", None), "clip", None)
    if clip is None or clip.scores != "cosine" or "alignment" not in clip.cosine_scores:
        raise ArgumentError(
            "clip_distance: expected a CLIP, of `rahf import clip` or `loss.contrastive`, whose alignment is a cosine"
        )
    return of(_ClipDistance(critic.scores), "CLIP distance", *_tokens(critic, text), _params(critic, params))


@dataclasses.dataclass(frozen=True)
class _ClipDistance:
    scores: Callable[..., Array]

    def __call__(self, pixels, text_ids, text_mask, params):
        alignment = self.scores(pixels, text_ids, text_mask, params)[..., SCORES.index("alignment")]
        # |u - v|² / 4 = (1 - cosine) / 2. Its arcsine has no finite derivative at 0 and 1.
        quarter = jnp.clip(1.0 - alignment.astype(jnp.float32), 1e-6, 1.0 - 1e-6)
        return 2.0 * jnp.square(jnp.arcsin(jnp.sqrt(quarter)))


@dataclasses.dataclass(frozen=True)
class _Scores:
    """Equal for equal critics, so that a program compiled for one energy serves the next."""

    scores: Callable[..., Array]
    columns: tuple[int, ...]  # of the scores that have a weight: others may be NaN

    def __call__(self, pixels, weights, text_ids, text_mask, params):
        scores = self.scores(pixels, text_ids, text_mask, params)[..., self.columns]
        return (1.0 - scores.astype(jnp.float32)) @ weights


@dataclasses.dataclass(frozen=True)
class _Heatmap:
    heatmaps: Callable[..., Array]
    column: int

    def __call__(self, pixels, text_ids, text_mask, params, mask=None):
        values = self.heatmaps(pixels, text_ids, text_mask, params)[..., self.column].astype(jnp.float32)
        if mask is None:
            return values.mean((1, 2))
        mask = jnp.broadcast_to(jnp.asarray(mask, jnp.float32), (*values.shape[:1], *mask.shape[-2:]))
        if mask.shape != values.shape:
            mask = jax.image.resize(mask, values.shape, "linear", antialias=True)
        return (values * mask).sum((1, 2)) / jnp.maximum(mask.sum((1, 2)), 1e-6)


def _tokens(critic: Any, text: Text) -> tuple[Any, Any]:
    if isinstance(text, tuple) and len(text) == 2 and not any(isinstance(part, str) for part in text):
        return text
    return critic.tokens(text)


def _params(critic: Any, params: Any) -> Any:
    return getattr(critic, "params", None) if params is None else params


def _checked_mask(mask: Any) -> Any:
    if np.ndim(mask) not in (2, 3):
        raise ArgumentError(f"mask of shape {np.shape(mask)}: expected [h,w] for all pictures, or [B,h,w]")
    if isinstance(mask, jax.core.Tracer):
        return mask
    values = np.asarray(mask, np.float32)
    if not (values.size and values.min() >= 0 and values.max() <= 1):
        raise ArgumentError("mask: expected bool, or weights in [0,1]; divide by 255 if it is a picture")
    if not (values.max((-2, -1)) > 0).all():
        raise ArgumentError("mask: nothing is inside it, so there is nothing to lower; leave such a picture out")
    return jnp.asarray(values)


__all__ = ["Energy", "function", "heatmap", "reward", "score"]
