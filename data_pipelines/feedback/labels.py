"""Opinions and a picture → the seven labels, by the rules of `data_pipelines.prepare.consolidate`."""

from __future__ import annotations

import math
from typing import Any, Mapping

import numpy as np

from data_pipelines.feedback.folder import Folder
from data_pipelines.feedback.opinions import Opinions
from data_pipelines.prepare.consolidate import majority, mean_score, vote_heatmap
from data_pipelines.prepare.counts import Refused
from data_pipelines.prepare.stored_images import encode_map, is_grey_png
from rahf import images
from rahf.core.batch import HEATMAPS, SCORES
from rahf.images.resize import resize

_LEAST_ALIKE = 0.98  # sides of the picture and of what was shown, which was perhaps scaled to whole pixels

Size = tuple[int, int]  # width, height in pixels


def scores(opinions: Opinions) -> np.ndarray:
    """float32 [4] in [0,1] in order `SCORES`: given as such, or the annotators' mean; NaN where nobody said one."""
    found = [mean_score(opinions.ratings[n]) if n in opinions.ratings else opinions.scores.get(n) for n in SCORES]
    return np.array([math.nan if score is None else score for score in found], np.float32)


def word_labels(opinions: Opinions) -> tuple[int, ...] | None:
    """Given as such, or the annotators' majority; None if nobody gave any."""
    return majority(np.array(opinions.words)) if opinions.words else opinions.word_labels


def shown_size(tree: Mapping[str, Any], picture: Size) -> Size:
    """Size at which the picture was shown, in whose pixels points are: the line's width and height, or the picture's.

    Raises:
      Refused: one of the two alone, no size, or one of another shape than the picture.
    """
    given = tree.get("width"), tree.get("height")
    if given == (None, None):
        return picture
    if not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in given):
        raise Refused("malformed", f"width and height are {given[0]!r:.40} and {given[1]!r:.40}, expected two numbers")
    if given[0] * given[1] > images.MAX_PIXELS:
        raise Refused("malformed", f"width and height are {given[0]} and {given[1]}, too large for a picture")
    across, down = given[0] / picture[0], given[1] / picture[1]
    # A side may have been rounded to whole pixels, which matters where the picture was shown small.
    slack = max(1 - _LEAST_ALIKE, 1 / min(given))
    if min(across, down) < (1 - slack) * max(across, down):
        raise Refused(
            "malformed",
            f"width and height are {given[0]} and {given[1]}, but the picture has {picture[0]} x {picture[1]} pixels, "
            "which is another shape",
        )
    return given


def points_outside(opinions: Opinions, shown: Size) -> bool:
    """Whether a click lies beside the picture."""
    lists = [points for clicks in opinions.clicks.values() for points in clicks]
    return any(not (0 <= x <= shown[0] and 0 <= y <= shown[1]) for points in lists for x, y in points)


def heatmaps(opinions: Opinions, shown: Size, folder: Folder, map_size: int | None) -> dict[str, bytes | None]:
    """Both maps as PNG of 8 bit grey, of one size; None where there is none.

    Args:
      opinions: clicks, or paths of maps.
      shown: size that the clicks refer to.
      folder: where the maps lie.
      map_size: side of square maps. None: clicks give maps of the size that was shown, files keep theirs, unless
        the two maps would differ: then both get the size that was shown.

    Raises:
      Refused: a map is missing, outside the folder or does not decode.
    """
    found, encoded = {}, {}
    for name, clicks in opinions.clicks.items():
        found[name] = vote_heatmap(clicks, *shown, map_size)
    for name, path in opinions.maps.items():
        encoded[name] = folder.read(path, "map")
        try:
            found[name] = images.load_grey(encoded[name], what=path)
        except images.ImageError as error:
            raise Refused("undecodable", str(error)) from error
    wanted = None if map_size is None else (map_size, map_size)
    if wanted is None and len({values.shape for values in found.values()}) > 1:
        wanted = shown
    made = dict.fromkeys(HEATMAPS)
    for name, values in found.items():
        if wanted is not None and values.shape[::-1] != wanted:
            made[name] = encode_map(resize(values, wanted[::-1]))
        else:
            kept = name in encoded and is_grey_png(encoded[name])
            made[name] = encoded[name] if kept else encode_map(values)
    return made
