"""One RichHF-18K example → labels: scores get our names, maps are snapped to the annotators' levels.

The release calls plausibility `artifact_score` and alignment `misalignment_score`, though high values mean a good
picture. They are renamed here and nowhere else.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from data_pipelines.prepare.counts import Refused
from data_pipelines.prepare.stored_images import encode_map, is_grey_png
from data_pipelines.store import tf_example
from rahf import images
from rahf.core.batch import SCORES

#: Our score → feature of the release.
SCORE_FEATURES = {
    "plausibility": "artifact_score",
    "alignment": "misalignment_score",
    "aesthetics": "aesthetics_score",
    "overall": "overall_score",
}
#: Our heatmap → feature of the release.
MAP_FEATURES = {"implausibility": "artifact_map", "misalignment": "misalignment_map"}
WORD_FEATURE = "prompt_misalignment_label"
#: Grey levels of a map: how many of three annotators marked the pixel, times 85.
LEVELS = (0, 85, 170, 255)
_FAR = 20  # grey levels; pixels that snapping moves further are counted
_MOST_PIXELS = 4096 * 4096  # released maps have 512x512

_NEAREST = np.array([min(LEVELS, key=lambda level: abs(level - v)) for v in range(256)], np.uint8)
_MOVED_FAR = np.abs(np.arange(256) - _NEAREST.astype(int)) > _FAR


class ReleasedLabels(NamedTuple):
    """ReleasedLabels of one record. A missing one is None, or NaN among the scores."""

    scores: np.ndarray  # float32 [4] in order rahf.core.batch.SCORES
    implausibility: bytes | None  # PNG, 8 bit grey, values in LEVELS
    misalignment: bytes | None
    word_labels: tuple[int, ...] | None  # 1 = aligned, 0 = misaligned
    pixels: int  # of both maps
    moved_far: int  # pixels that snapping moved by more than 20 grey levels


def uid_of(features: Mapping[str, tf_example.Values]) -> str:
    """The picture's uid: the stem of ``filename`` (``<Pick-a-Pic split>/<uid>.<extension>``).

    Raises:
      Refused: no file name.
    """
    values = features.get("filename") or []
    name = values[0].decode(errors="replace") if values and isinstance(values[0], bytes) else ""
    uid = pathlib.PurePosixPath(name).stem
    if not uid:
        raise Refused("missing field", f"no field 'filename', so no picture can be found; it has {_names(features)}")
    return uid


def read_labels(
    features: Mapping[str, tf_example.Values], decoded: Mapping[str, np.ndarray] | None = None
) -> ReleasedLabels:
    """Takes the seven labels from a parsed example; any of them may be missing.

    Args:
      features: values by feature name, as `tf_example.parse` gives them.
      decoded: maps by feature name that are there as numbers, uint8 [h,w], 255 = every annotator.

    Raises:
      Refused: a score outside [0, 1], word labels other than 0 and 1, or a map that does not decode.
    """
    maps: dict[str, bytes | None] = {}
    pixels = moved = 0
    for name, feature in MAP_FEATURES.items():
        if decoded and feature in decoded:
            snapped, far = snap(decoded[feature])
            pixels, moved = pixels + snapped.size, moved + far
            maps[name] = encode_map(snapped)
            continue
        encoded = _single(features, feature, bytes)
        if not encoded:  # some writers store an empty string for a missing map
            maps[name] = None
            continue
        try:
            grey = images.load_map(encoded, _MOST_PIXELS, feature)
        except images.ImageError as error:
            raise Refused("undecodable", str(error)) from error
        snapped, far = snap(grey)
        pixels, moved = pixels + grey.size, moved + far
        unchanged = is_grey_png(encoded) and np.array_equal(snapped, grey)
        maps[name] = encoded if unchanged else encode_map(snapped)
    scores = np.array([_score(features, SCORE_FEATURES[name]) for name in SCORES], np.float32)
    return ReleasedLabels(scores, **maps, word_labels=_word_labels(features), pixels=pixels, moved_far=moved)


def snap(grey: np.ndarray) -> tuple[np.ndarray, int]:
    """Moves every pixel to the nearest of LEVELS, undoing the ringing of JPEG.

    Args:
      grey: uint8 [h,w].

    Returns:
      uint8 [h,w] with values in LEVELS, and the number of pixels moved by more than 20 grey levels.
    """
    return _NEAREST[grey], int(np.count_nonzero(_MOVED_FAR[grey]))


def _score(features: Mapping[str, tf_example.Values], feature: str) -> float:
    value = _single(features, feature, (float, int))
    if value is None:
        return math.nan
    if not 0 <= value <= 1:  # also false for NaN
        raise Refused("bad score", f"{feature} is {value}, expected a number in [0, 1]")
    return value


def _word_labels(features: Mapping[str, tf_example.Values]) -> tuple[int, ...] | None:
    text = _single(features, WORD_FEATURE, bytes)
    if text is None:
        return None
    pieces = text.decode(errors="replace").split()
    if any(piece not in ("0", "1") for piece in pieces):
        raise Refused("word/label mismatch", f"{WORD_FEATURE} is {' '.join(pieces)!r:.80}, expected zeros and ones")
    return tuple(int(piece) for piece in pieces)


def _single(features: Mapping[str, tf_example.Values], name: str, kind: type | tuple[type, ...]):
    """The only value of a feature; None if there is none."""
    values = features.get(name)
    if not values:
        return None
    if len(values) > 1 or not isinstance(values[0], kind):
        present = f"{len(values)} values of type {type(values[0]).__name__}"
        raise Refused("malformed", f"feature {name!r} has {present}, expected one")
    return values[0]


def _names(features: Mapping[str, tf_example.Values]) -> str:
    return ", ".join(sorted(features)) or "no field at all"
