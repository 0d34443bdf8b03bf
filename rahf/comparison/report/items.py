"""The gallery of the report: one item per picture or prompt, with sides that a reader lays over each other."""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from PIL import Image

from rahf.comparison.predictions import Predicted
from rahf.core.batch import HEATMAPS, SCORES
from rahf.critic.drawing import prompt_html
from rahf.critic.evaluation.report.gallery import Encoding, jpeg_uri, layer_uri
from rahf.images.overlay import as_unit
from rahf.images.resize import resize

#: From finest to coarsest: sides of pictures and maps in pixels, JPEG quality.
ENCODINGS = (Encoding(448, 160, 80), Encoding(352, 128, 76), Encoding(256, 96, 70), Encoding(192, 64, 62))
_KEPT_MAP = ENCODINGS[0].map_side
_KEPT_PICTURE = ENCODINGS[0].image_side


class SideData(NamedTuple):
    """What one source says of a picture, or what people said. Maps are reduced: they are only looked at."""

    scores: np.ndarray  # float [4], NaN where there is none
    maps: tuple[np.ndarray | None, ...]  # uint8 [h,w]
    word_labels: tuple[int, ...] | None
    picture: int  # which of the item's pictures; -1: this side has none


@dataclasses.dataclass(frozen=True)
class Item:
    """One picture with several sources, or one prompt with several generators.

    Attributes:
      name: uid, path or number.
      prompt, words: of it.
      pictures: uint8 [H,W,3] each, at most 448 pixels wide or high.
      sides: in the order of the report's.
      measures: values by which items can be ordered, high first; NaN where there is none.
      order: position in the data.
    """

    name: str
    prompt: str
    words: Sequence[str]
    pictures: Sequence[np.ndarray]
    sides: Sequence[SideData | None]
    measures: dict[str, float]
    order: int


def reduced_picture(image: np.ndarray) -> np.ndarray:
    """A picture, uint8 [H,W,3], no larger than the gallery shows it."""
    if max(image.shape[:2]) <= _KEPT_PICTURE:
        return image
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((_KEPT_PICTURE, _KEPT_PICTURE), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def reduced_map(values: np.ndarray | None) -> np.ndarray | None:
    """A map, uint8 or float, as uint8 no larger than the gallery shows it."""
    if values is None:
        return None
    unit = as_unit(values)
    scale = _KEPT_MAP / max(unit.shape)
    if scale < 1:
        unit = np.clip(resize(unit, tuple(max(1, round(side * scale)) for side in unit.shape)), 0, 1)
    return (unit * 255).round().astype(np.uint8)


def side_of(predicted: Predicted, picture: int = 0) -> SideData:
    """A side of what a source predicts."""
    return SideData(
        np.asarray(predicted.scores), tuple(map(reduced_map, predicted.heatmaps)), predicted.word_labels, picture
    )


class Kept:
    """Items that a gallery may show: half of the room for those that differ most, half for a fair sample of all."""

    def __init__(self, most: int):
        self.most, self.count = most, 0
        self._top: list[tuple[float, int, Item]] = []
        self._sample: dict[int, Item] = {}
        self._random = np.random.default_rng(0)

    def offer(self, difference: float, make: Callable[[], Item]) -> None:
        """Keeps an item if it belongs to them; `make` is called only then."""
        number, self.count = self.count, self.count + 1
        key = difference if math.isfinite(difference) else -1.0
        place = number if number < self.most else int(self._random.integers(0, number + 1))
        room = self.most // 2
        enters = room > 0 and (len(self._top) < room or key > self._top[0][0])
        if place >= self.most and not enters:
            return
        item = make()
        if place < self.most:
            self._sample[place] = item
        if enters:
            (heapq.heappushpop if len(self._top) >= room else heapq.heappush)(self._top, (key, number, item))

    def items(self) -> list[Item]:
        """At most `most`, in the order of the data."""
        top = {item.order: item for _, _, item in self._top}
        for place in sorted(self._sample):
            if len(top) >= self.most:
                break
            top.setdefault(self._sample[place].order, self._sample[place])
        return [top[order] for order in sorted(top)]


def disagreement(sides: Sequence[SideData | None]) -> dict[str, float]:
    """How far the sides of an item are apart, by kind; NaN where fewer than two have it.

    Scores: largest difference of a score. Maps: mean absolute difference of the pair that is farthest apart, as a share
    of what the two mark. Words: share of words on which two sides differ.
    """
    present = [side for side in sides if side is not None]
    return {"scores": _score_range(present), "maps": _map_distance(present), "words": _word_distance(present)}


def _score_range(sides: Sequence[SideData]) -> float:
    ranges = []
    for column in range(len(SCORES)):
        values = [side.scores[column] for side in sides if np.isfinite(side.scores[column])]
        if len(values) > 1:
            ranges.append(max(values) - min(values))
    return float(max(ranges)) if ranges else math.nan


def _map_distance(sides: Sequence[SideData]) -> float:
    farthest = math.nan
    for kind in range(len(HEATMAPS)):
        maps = [side.maps[kind] for side in sides if side.maps[kind] is not None]
        small = [resize(as_unit(one), (32, 32)) for one in maps]
        for i, one in enumerate(small):
            for other in small[i + 1 :]:
                distance = float(np.abs(one - other).sum() / (np.maximum(one, other).sum() + 1.0))
                farthest = distance if math.isnan(farthest) else max(farthest, distance)
    return farthest


def _word_distance(sides: Sequence[SideData]) -> float:
    labels = [side.word_labels for side in sides if side.word_labels is not None]
    if len(labels) < 2 or not labels[0] or len({len(one) for one in labels}) > 1:
        return math.nan
    return float(np.mean(np.ptp(np.array(labels), axis=0)))


class EncodedItem(NamedTuple):
    """One item as the page shows it: values of the template, and the CSS rules that hold its pictures."""

    values: dict
    rules: list[str]
    size: int  # bytes of the rules


def encode(item: Item, number: int, side_names: Sequence[str], encoding: Encoding) -> EncodedItem:
    """Pictures and maps become CSS classes: ``p<item>-<picture>`` and ``m<item>-<side>-<map>``.

    Args:
      item: to encode.
      number: its place in the gallery.
      side_names: of all sides.
      encoding: of its pictures.
    """
    rules = [
        f".p{number}-{i}{{background-image:url({jpeg_uri(one, encoding)})}}" for i, one in enumerate(item.pictures)
    ]
    height, width = item.pictures[0].shape[:2] if len(item.pictures) else (1, 1)
    for i, one in enumerate(item.pictures):
        rules += _frame(f".f{number}-{i}", one.shape[1] / one.shape[0] / (width / height))
    has: list[list[bool]] = []
    for side_number, side in enumerate(item.sides):
        has.append([False] * len(HEATMAPS))
        for kind, name in enumerate(HEATMAPS):
            values = None if side is None else side.maps[kind]
            if values is None:
                continue
            has[-1][kind] = True
            if values.max() > 5:  # what is fainter cannot be seen
                uri = layer_uri(values, name, encoding)
                rules.append(f".m{number}-{side_number}-{kind}{{background-image:url({uri})}}")
    sides = [None if side is None else _side_values(item, side, one) for side, one in zip(item.sides, has)]
    values = {
        "number": number,
        "name": item.name,
        "prompt": item.prompt,
        "ratio": f"{width}/{height}",
        "sides": sides,
        "side_names": side_names,
        "measures": {name: value for name, value in item.measures.items() if math.isfinite(value)},
        "order": item.order,
    }
    return EncodedItem(values, rules, sum(map(len, rules)))


def _frame(selector: str, relative: float) -> list[str]:
    """The rule that fits a picture into the stage, whose shape is that of the item's first picture.

    Args:
      selector: of the frame.
      relative: the picture's width by height, over that of the stage.
    """
    if abs(relative - 1) < 0.01:
        return []
    size = f"height:{100 / relative:.2f}%" if relative > 1 else f"width:{100 * relative:.2f}%"
    return [f"{selector}{{{size}}}"]


def _side_values(item: Item, side: SideData, has: list[bool]) -> dict:
    classes = ["" if label else "miss" for label in side.word_labels or ()]
    marked = None
    if side.word_labels is not None and len(side.word_labels) == len(item.words):
        marked = Markup(prompt_html(item.prompt, item.words, classes, None))  # escapes
    return {
        "picture": side.picture,
        "has": has,
        "marked": marked,
        "misses": sum(1 for one in classes if one),
        "scores": [float(v) if math.isfinite(v) else None for v in side.scores],
    }
