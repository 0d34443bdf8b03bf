"""SGOOL: DOODL with an energy of the picture and of its salient parts (spec 5.2; Xin & Wang 2024).

    L = (1 - l) E(picture) + l E(crop around what people look at)

A saliency model finds the salient parts of the pictures as they are now, again every few updates; boxes are constants
of the gradient, their pixels are not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from rahf.core import labels
from rahf.core.errors import ArgumentError, NotPredicted
from rahf.core.labels import HEATMAPS
from rahf.diffusion.latents import doodl as doodl_lib
from rahf.diffusion.latents.doodl import DoodlOptions, DoodlResult
from rahf.diffusion.pipeline import Pipeline
from rahf.nn import energy as energy_lib

#: Pictures float32 [B,H,W,3] in [0,1] → maps [B,h,w], high where people look; of any size.
Saliency = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class SaliencyOptions:
    """Which parts count as salient, and how much.

    Attributes:
      weight: l, share of the crop's energy; 0: DOODL.
      refresh_every: r, updates between two looks at the pictures.
      parts: n, most boxes of a picture; their energies are averaged.
      least_area: components smaller than this share of the picture are dropped.
      padding: added to each side of a box, in shares of its side.
      least_side: of a box, in shares of the picture's shorter side.
    """

    weight: float = 0.5
    refresh_every: int = 1
    parts: int = 1
    least_area: float = 0.01
    padding: float = 0.1
    least_side: float = 0.25

    def __post_init__(self):
        """Raises ArgumentError for numbers that make no sense; names them."""
        if not 0 <= self.weight <= 1:
            raise ArgumentError(f"weight: expected 0 to 1, found {self.weight}")
        for name in ("refresh_every", "parts"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name}: expected at least 1, found {getattr(self, name)}")


def sgool(
    pipe: Pipeline,
    prompts: str | Sequence[str],
    energy: energy_lib.Energy,
    saliency: Saliency,
    *,
    negative_prompt: str | Sequence[str] | None = None,
    seeds: int | Sequence[int] = 0,
    latents: Any = None,
    height: int | None = None,
    width: int | None = None,
    options: DoodlOptions = DoodlOptions(),
    salient: SaliencyOptions = SaliencyOptions(),
    keep_every: int = 0,
    progress: Callable[[int, int, np.ndarray], None] | None = None,
) -> DoodlResult:
    """Optimises the noise so that picture and salient parts have a low energy.

    Args:
      saliency: maps of pictures; see `of_heatmap`.
      salient: of the salient parts.
      others: as of `rahf.diffusion.latents.doodl.doodl`.

    Raises:
      ArgumentError: as of `doodl`, or maps of another number than pictures.
      NotFinite: as of `doodl`.
    """

    def boxes(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        maps = np.asarray(saliency(pictures), np.float32)
        if maps.ndim != 3 or len(maps) != len(pictures):
            raise ArgumentError(f"saliency: expected maps [{len(pictures)},h,w], found shape {maps.shape}")
        return salient_boxes(maps, pictures.shape[1:3], salient)

    return doodl_lib.optimise(
        pipe,
        prompts,
        energy,
        boxes=boxes,
        salient_weight=salient.weight,
        refresh_every=salient.refresh_every,
        sampling=(negative_prompt, seeds, latents, (height, width)),
        options=options,
        keep_every=keep_every,
        progress=progress,
    )


def of_heatmap(model: Any, prompts: str | Sequence[str], which: str | None = None) -> Saliency:
    """A heatmap of a critic or of a saliency model as saliency.

    Args:
      model: of `rahf.load`: anything with a critic's functions `tokens` and `heatmaps`, and perhaps `heatmap_names`.
      prompts: one for all pictures, or one per picture.
      which: a name of the model's heatmaps, of a critic `rahf.core.batch.HEATMAPS`; None: the first that it predicts.

    Raises:
      UnknownNameError, NotPredicted: as `heatmap_column`.
    """
    column, tokens = heatmap_column(model, which), model.tokens(prompts)

    def saliency(pictures: Any) -> np.ndarray:
        per_picture = [np.repeat(x, len(pictures) // len(x), 0) for x in tokens]
        return np.asarray(model.heatmaps(jnp.asarray(pictures), *per_picture))[..., column]

    return saliency


def heatmap_column(model: Any, which: str | None = None) -> int:
    """Position of a heatmap among those of a model; arguments as of `of_heatmap`.

    Raises:
      UnknownNameError: an unknown heatmap; suggests the nearest.
      NotPredicted: the model does not predict it, or none at all.
    """
    heatmaps = getattr(model, "heatmap_names", HEATMAPS)
    outputs = getattr(model, "outputs", None)
    if outputs is None or heatmaps is not HEATMAPS:
        return labels.position("heatmap", which or heatmaps[0], heatmaps)
    if which is None and not outputs.heatmaps:
        raise NotPredicted("saliency: this model predicts no heatmap, so it cannot say where people look; name another")
    which = outputs.heatmaps[0] if which is None else which
    outputs.check_heatmap(which)
    return labels.position("heatmap", which, heatmaps)


def salient_boxes(
    maps: np.ndarray, size: tuple[int, int], options: SaliencyOptions = SaliencyOptions()
) -> tuple[np.ndarray, np.ndarray]:
    """The boxes around the most salient components of each map.

    A map is cut at the larger of mean + standard deviation and half its maximum. Components are ordered by the sum of
    the map inside them. A box is padded, made square in pixels, and moved inside the picture.

    Args:
      maps: [B,h,w], not negative.
      size: height and width of the pictures in pixels.

    Returns:
      Boxes float32 [B,n,4] (left, top, right, bottom; shares of the sides), and weights float32 [B,n] that sum to 1. A
      map without a component gives the whole picture.

    Raises:
      ArgumentError: maps that are not finite, or negative.
    """
    maps = np.asarray(maps, np.float32)
    if not np.isfinite(maps).all() or maps.min(initial=0) < 0:
        raise ArgumentError(f"saliency: expected finite values of at least 0, found {maps.min():g} to {maps.max():g}")
    boxes = np.tile(np.float32([0, 0, 1, 1]), (len(maps), options.parts, 1))
    weights = np.zeros((len(maps), options.parts), np.float32)
    for number, heatmap in enumerate(maps):
        components = _components(heatmap, options)
        for place, component in enumerate(components):
            boxes[number, place] = _box(component, heatmap.shape, size, options)
        weights[number, : max(1, len(components))] = 1 / max(1, len(components))
    return boxes, weights


def _components(heatmap: np.ndarray, options: SaliencyOptions) -> list[tuple[slice, slice]]:
    threshold = max(float(heatmap.mean() + heatmap.std()), 0.5 * float(heatmap.max()))
    # A map without any contrast has no salient part.
    marked = (heatmap >= threshold) & (heatmap > 0) & (heatmap.max() > heatmap.min())
    labels, count = ndimage.label(marked, np.ones((3, 3)))
    areas = ndimage.sum_labels(marked, labels, np.arange(1, count + 1))
    masses = ndimage.sum_labels(heatmap, labels, np.arange(1, count + 1))
    places = ndimage.find_objects(labels)
    order = [k for k in np.argsort(-masses, kind="stable") if areas[k] >= options.least_area * heatmap.size]
    return [places[k] for k in order[: options.parts]]


def _box(
    place: tuple[slice, slice], grid: tuple[int, int], size: tuple[int, int], options: SaliencyOptions
) -> np.ndarray:
    """Square in pixels, inside the picture; shares of the sides."""
    scales = [side / cells for side, cells in zip(size, grid)]
    (top, bottom), (left, right) = ((part.start * scale, part.stop * scale) for part, scale in zip(place, scales))
    shorter = min(size)
    side = max(bottom - top, right - left) * (1 + 2 * options.padding)
    side = min(max(side, options.least_side * shorter), shorter)
    start = [(low + high - side) / 2 for low, high in ((left, right), (top, bottom))]
    start = [min(max(at, 0.0), whole - side) for at, whole in zip(start, size[::-1])]
    corners = np.array([*start, *(at + side for at in start)])
    return (corners / np.array([*size[::-1], *size[::-1]])).astype(np.float32)
