"""The opinions on a picture → its seven labels, by the rules of `data_pipelines.prepare.consolidate`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.feedback.folder import Folder
from data_pipelines.feedback.opinions import Opinions
from data_pipelines.prepare.consolidate import draw_discs, majority, mean_score, vote_heatmap
from data_pipelines.prepare.counts import Refused
from data_pipelines.prepare.stored_images import encode_map, is_grey_png
from rahf import images
from rahf.core.batch import HEATMAPS, SCORES
from rahf.images.resize import resize

_LEAST_ALIKE = 0.98  # ratio of the scales along both sides: the picture may have been shown at a rounded size

Size = tuple[int, int]  # width, height in pixels


def scores(opinions: Opinions) -> np.ndarray:
    """float32 [4] in [0,1] in order `SCORES`: the line's own, or the annotators' mean; NaN where there is neither."""
    values = [mean_score(opinions.ratings[n]) if n in opinions.ratings else opinions.scores.get(n) for n in SCORES]
    return np.array([math.nan if value is None else value for value in values], np.float32)


def word_labels(opinions: Opinions) -> tuple[int, ...] | None:
    """The line's own, or the annotators' majority; None if there is neither."""
    return majority(np.array(opinions.words)) if opinions.words else opinions.word_labels


def shown_size(tree: Mapping[str, Any], picture: Size) -> Size:
    """Size at which the picture was shown, to whose pixels points refer: the line's width and height, or the picture's.

    Raises:
      Refused: only one of the two, no size, or another aspect ratio than the picture's.
    """
    size = tree.get("width"), tree.get("height")
    if size == (None, None):
        return picture
    if not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in size):
        raise Refused("malformed", f"width and height are {size[0]!r:.40} and {size[1]!r:.40}, expected two numbers")
    if size[0] * size[1] > images.MAX_PIXELS:
        raise Refused("malformed", f"width and height are {size[0]} and {size[1]}, too large for a picture")
    across, down = size[0] / picture[0], size[1] / picture[1]
    # Rounding a side to whole pixels changes the aspect ratio of a small picture more.
    slack = max(1 - _LEAST_ALIKE, 1 / min(size))
    if min(across, down) < (1 - slack) * max(across, down):
        raise Refused(
            "malformed",
            f"width and height are {size[0]} and {size[1]}, but the picture has {picture[0]} x {picture[1]} pixels, "
            "which is another shape",
        )
    return size


def points_outside(opinions: Opinions, shown: Size) -> bool:
    """Whether a point lies outside the picture."""
    lists = [points for clicks in opinions.clicks.values() for points in clicks]
    return any(not (0 <= x <= shown[0] and 0 <= y <= shown[1]) for points in lists for x, y in points)


def annotator_maps(opinions: Opinions, shown: Size, map_size: int | None) -> dict[str, tuple[bytes, ...]]:
    """The map of each annotator, by field of a record; (): fewer than two clicked, or the maps came from files.

    With them an evaluation can compare each person with the others.

    Args:
      opinions, shown, map_size: as of `heatmaps`.
    """
    maps = {}
    for name in HEATMAPS:
        clicks = opinions.clicks.get(name, [])
        each = [255 * draw_discs(points, *shown, map_size).astype(np.uint8) for points in clicks]
        maps[f"annotator_{name}"] = tuple(map(encode_map, each)) if len(each) > 1 else ()
    return maps


def heatmaps(opinions: Opinions, shown: Size, folder: Folder, map_size: int | None) -> dict[str, bytes | None]:
    """Both maps as PNG of 8 bit grey, of one size; None where there is none.

    Args:
      opinions: clicks, or paths of maps.
      shown: size that the clicks refer to.
      folder: holds the maps.
      map_size: side of square maps. None: clicks give maps of size `shown`, files keep their size. If the two maps
        would differ in size, both get size `shown`.

    Raises:
      Refused: a map is missing, outside the folder or does not decode.
    """
    maps, encoded = {}, {}
    for name, clicks in opinions.clicks.items():
        maps[name] = vote_heatmap(clicks, *shown, map_size)
    for name, path in opinions.maps.items():
        encoded[name] = folder.read(path, "map")
        try:
            maps[name] = images.load_map(encoded[name], what=path)
        except images.ImageError as error:
            raise Refused("undecodable", str(error)) from error
    size = None if map_size is None else (map_size, map_size)
    if size is None and len({values.shape for values in maps.values()}) > 1:
        size = shown
    stored = dict.fromkeys(HEATMAPS)
    for name, values in maps.items():
        if size is not None and values.shape[::-1] != size:
            stored[name] = encode_map(resize(values, size[::-1]))
        else:
            as_it_is = name in encoded and is_grey_png(encoded[name])
            stored[name] = encoded[name] if as_it_is else encode_map(values)
    return stored
