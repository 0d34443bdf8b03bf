"""Training augmentations: random crop, photometric changes, greyscale (RAHF paper, supplement), mirroring (ours).

A crop is a random box in shares of width and height. Image and both heatmaps are cropped to it while they are resized
(`rahf.images.decode_resized`, `resize_grey`), so that they stay registered. Colour changes apply to the image only.
The paper has no flips, because a flip contradicts "left" and "right" in the prompt: here such prompts are spared.

Pure functions of their arguments and of a numpy generator.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import PIL.Image
import simplejpeg
from jaxtyping import Float, UInt8

from rahf.config import AugmentConfig
from rahf.core.errors import ConfigError
from rahf.images import FULL, Box

Image = UInt8[np.ndarray, "h w 3"]

#: Words that a mirrored picture would contradict. Other languages have others: leave `flip_probability` at 0 there.
_SIDES = re.compile(r"\b(left|right)(most|wards?|hand)?\b", re.IGNORECASE)
_CROP_TRIES = 10  # boxes drawn until one keeps enough of every heatmap; after that the image is not cropped
# RGB -> luma (ITU-R BT.601, as in JPEG) and two colour differences that are 0 for greys (NTSC YIQ).
_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


def random_box(config: AugmentConfig, rng: np.random.Generator, maps: Sequence[UInt8[np.ndarray, "_ _"]] = ()) -> Box:
    """Draws the part of the image to keep: with `crop_probability` a crop, else everything.

    The shares of width and height are drawn separately from `crop_keep`, then the place. With `crop_keeps_mass` > 0
    a crop that keeps less than that share of the sum of any map is drawn again; after ten of them the image is not
    cropped.

    Args:
      config: ranges and probabilities.
      rng: source of randomness; its state advances.
      maps: heatmaps of the image, each of any size.

    Returns:
      left, top, right, bottom as shares of width and height.
    """
    if rng.random() >= config.crop_probability:
        return FULL
    for _ in range(_CROP_TRIES):
        width, height = rng.uniform(*config.crop_keep, size=2)
        left, top = rng.random(2) * (1 - width, 1 - height)
        box = (float(left), float(top), min(1.0, float(left + width)), min(1.0, float(top + height)))
        if not config.crop_keeps_mass or all(kept_mass(m, box) >= config.crop_keeps_mass for m in maps):
            return box
    return FULL


def random_flip(config: AugmentConfig, rng: np.random.Generator, prompt: str) -> bool:
    """Whether to mirror the picture and its heatmaps left to right.

    Nothing is drawn at a probability of 0: the other draws stay those of runs that did not know flips.

    Args:
      config: `flip_probability`.
      rng: source of randomness; its state advances unless the probability is 0.
      prompt: of the picture; one that says "left" or "right" keeps it as it is.
    """
    if not config.flip_probability:
        return False
    return bool(rng.random() < config.flip_probability) and not _SIDES.search(prompt)


def kept_mass(values: UInt8[np.ndarray, "h w"], box: Box) -> float:
    """Share of a heatmap's sum that a crop keeps, 1 for an empty map. Edges are rounded to whole pixels."""
    total = float(values.sum(dtype=np.int64))
    if total == 0:
        return 1.0
    height, width = values.shape
    left, top, right, bottom = (round(e * n) for e, n in zip(box, (width, height, width, height)))
    return float(values[top:bottom, left:right].sum(dtype=np.int64)) / total


def random_colours(image: Image, config: AugmentConfig, rng: np.random.Generator) -> Image:
    """Applies the photometric changes and greyscale, each with its probability; else returns the image itself."""
    if rng.random() < config.photometric_probability:
        image = photometric(
            image,
            brightness=rng.uniform(-config.brightness, config.brightness),
            contrast=rng.uniform(*config.contrast),
            hue=rng.uniform(-config.hue, config.hue),
            saturation=rng.uniform(*config.saturation),
        )
        image = through_jpeg(image, int(rng.integers(config.jpeg_quality[0], config.jpeg_quality[1] + 1)))
    if rng.random() < config.grey_probability:
        image = grey(image)
    return image


def photometric(image: Image, brightness: float, contrast: float, hue: float, saturation: float) -> Image:
    """Brightness, contrast, hue and saturation in one linear map, then clipped to 0..255.

    Hue rotates, and saturation scales, the two colour differences of YIQ; luma stays. Unlike hue and saturation of HSV
    this is linear in the pixel. For the small changes used here both look alike.

    Args:
      image: uint8 [h,w,3].
      brightness: added, on a scale where white is 1.
      contrast: factor of the distance to each channel's mean over the image.
      hue: turn of the colour circle, in turns.
      saturation: factor, 0 is grey.
    """
    height, width, _ = image.shape
    sums = image.reshape(height, width * 3).sum(0, dtype=np.uint32).reshape(width, 3).sum(0, dtype=np.float64)
    matrix = colour_matrix(hue, saturation)
    offset = matrix @ (sums / (height * width) * (1 - contrast) + 255 * brightness)
    rows = np.concatenate([contrast * matrix, offset[:, None]], axis=1)
    # Pillow rounds and clips, is faster than numpy, and starts no threads, which a matrix product may do.
    return np.asarray(PIL.Image.fromarray(image).convert("RGB", tuple(rows.ravel().tolist())))


def colour_matrix(hue: float, saturation: float) -> Float[np.ndarray, "3 3"]:
    """The matrix that turns the hue by `hue` turns and multiplies the saturation; greys map to themselves."""
    cos, sin = saturation * np.cos(2 * np.pi * hue), saturation * np.sin(2 * np.pi * hue)
    turn = np.array([[1, 0, 0], [0, cos, sin], [0, -sin, cos]])  # positive: from red to yellow, as in HSV
    return np.linalg.solve(_YIQ, turn @ _YIQ)


def through_jpeg(image: Image, quality: int) -> Image:
    """Encodes as JPEG, with colour at half resolution as in most JPEG files, and decodes. `quality` 1..100."""
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality, "RGB", "420")
    return simplejpeg.decode_jpeg(data)


def grey(image: Image) -> Image:
    """Luma (ITU-R BT.601) in all three channels."""
    return np.asarray(PIL.Image.fromarray(image).convert("L").convert("RGB"))


def check(config: AugmentConfig) -> None:
    """Raises ConfigError for a range or probability that cannot be drawn from."""
    for name in (
        "crop_probability",
        "photometric_probability",
        "grey_probability",
        "crop_keeps_mass",
        "flip_probability",
    ):
        if not 0 <= getattr(config, name) <= 1:
            raise ConfigError(f"augment.{name}: expected 0..1, found {getattr(config, name)}")
    limits = {"crop_keep": (0.01, 1), "contrast": (0, 10), "saturation": (0, 10), "jpeg_quality": (1, 100)}
    for name, (least, most) in limits.items():
        low, high = getattr(config, name)
        if not least <= low <= high <= most:
            raise ConfigError(f"augment.{name}: expected two rising values within {least}..{most}, found {low}, {high}")
    for name, most in (("brightness", 1), ("hue", 0.5)):
        if not 0 <= getattr(config, name) <= most:
            raise ConfigError(f"augment.{name}: expected 0..{most}, found {getattr(config, name)}")
