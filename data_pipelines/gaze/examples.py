"""A stored picture with fixations → the arrays of one example, on the network's canvas; examples → a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.gaze import density
from data_pipelines.loading import transforms
from data_pipelines.store.records import Record
from rahf import images
from rahf.config import AugmentConfig, SaliencyConfig
from rahf.core.errors import DataError
from rahf.images import letterbox
from rahf.images.resize import resize


class GazeBatch(NamedTuple):
    """A batch of pictures and of where people looked. Maps have one cell per `SaliencyConfig.stride` canvas pixels."""

    image: Any  # uint8 [B,H,W,3] on the canvas, or a cached tower's outputs
    frame: Any  # int32 [B,4] `rahf.images.letterbox.Frame` of each picture, in cells
    counts: Any  # float32 [B,h,w] fixations in each cell; 0 everywhere: not recorded
    density: Any  # float32 [B,h,w] sum 1 inside the frame, 0 outside
    flipped: Any  # bool [B] mirrored left to right
    example_mask: Any  # bool [B] False for filling
    index: Any  # int64 [B] position in the split, -1 for filling


def example(
    record: Record,
    index: int,
    config: SaliencyConfig,
    flip: bool = False,
    pixels: bool = True,
    augment: AugmentConfig | None = None,
    rng: np.random.Generator | None = None,
) -> GazeBatch:
    """One example, without the batch axis.

    Args:
      record: with `saliency`.
      index: its position in the split.
      config: canvas and stride.
      flip: mirror it left to right.
      pixels: False: the picture is not decoded, and is one black pixel.
      augment: crops and colours; None: neither. A crop without any of the density is not taken.
      rng: what they are drawn from.

    Raises:
      DataError: the picture or its density cannot be decoded; or it has none.
    """
    where = f"record {index} (uid {record.uid!r})"
    if record.saliency is None:
        raise DataError(f"{where}: has no density; prepare the data with `rahf prepare saliency`")
    try:
        header = images.check_header(record.image)
        truth = density.decode(record.saliency, where)
        box = images.FULL if augment is None else _crop(augment, rng, truth)
        left, top, right, bottom = box
        size = header.height * (bottom - top), header.width * (right - left)
        frame = letterbox.fit(size, config.grid)
        image = canvas(record.image, config, box=box) if pixels else np.zeros((1, 1, 3), np.uint8)
    except images.ImageError as error:
        raise DataError(f"{where}: {error}; prepare the data again") from error
    cells = frame.rows, frame.columns
    maps = np.zeros((2, *config.grid), np.float32)
    inside = (slice(None), *frame.slices())
    maps[inside][1] = np.maximum(resize(truth, cells, box), 0)
    maps[1] /= maps[1].sum()
    if record.fixations is not None:
        points = record.fixations[:, :2] - np.array([left * header.width, top * header.height])
        kept = ((points >= 0) & (points <= size[::-1])).all(1)
        maps[inside][0] = density.counts(points[kept], size, cells)
    if augment is not None and pixels:
        image = transforms.random_colours(image, augment, rng)
    place = np.array(frame, np.int32)
    if flip:
        image, maps = image[:, ::-1], maps[:, :, ::-1]
        place[1] = config.grid[1] - frame.left - frame.columns
    return GazeBatch(image, place, maps[0], maps[1], np.array(flip), np.array(True), np.array(index, np.int64))


def _crop(augment: AugmentConfig, rng: np.random.Generator, truth: np.ndarray) -> images.Box:
    levels = np.round(truth * (255 / truth.max())).astype(np.uint8)
    box = transforms.random_box(augment, rng, [levels])
    return box if transforms.kept_mass(levels, box) > 0 else images.FULL


def canvas(
    encoded: bytes, config: SaliencyConfig, on_damage: images.OnDamage | None = None, box: images.Box = images.FULL
) -> np.ndarray:
    """The picture, or the part of it in `box`, on the network's canvas, uint8 [H,W,3].

    `on_damage`, errors: as of `rahf.images.load_rgb`.
    """
    rgb = images.load_rgb(encoded, on_damage=on_damage)
    left, top, right, bottom = box
    frame = letterbox.fit((rgb.shape[0] * (bottom - top), rgb.shape[1] * (right - left)), config.grid)
    size = config.image_height, config.image_width
    return letterbox.place(rgb, frame, size, config.stride, letterbox.fill_value(config.image_mean), box)


def filling(config: SaliencyConfig) -> GazeBatch:
    """An example that counts nowhere, to fill up the last batch."""
    maps = np.zeros((2, *config.grid), np.float32)
    maps[1] = 1 / maps[1].size
    return GazeBatch(
        np.zeros((config.image_height, config.image_width, 3), np.uint8),
        np.array([0, 0, *config.grid], np.int32),
        maps[0],
        maps[1],
        np.array(False),
        np.array(False),
        np.array(-1, np.int64),
    )


def stack(examples: Sequence[GazeBatch]) -> GazeBatch:
    """Examples as a batch."""
    return GazeBatch(*(np.stack(field) for field in zip(*examples)))
