"""Marks as a COCO file: a disc of each mark as polygon, box and key point, with the pseudonym of who set it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from typing import Any

from data_pipelines.feedback.opinions import POINT_FIELDS
from data_pipelines.prepare.consolidate import RADIUS
from rahf.annotate.exporting import Exported
from rahf.core.errors import AnnotateError
from rahf.core.files import write_atomically

_CORNERS = 32  # of a disc's polygon


def write(
    exported: Iterator[Exported], path: str | os.PathLike, kinds: tuple[str, ...] | None = None
) -> tuple[int, int]:
    """Writes the file. ``annotations`` are marks of people alone.

    Marks of a critic that people were shown are in the list ``premarks`` beside it, each with the model, the heatmap's
    value (``score``), who was shown it and who agreed. Readers of COCO do not take them for annotations.

    `rahf prepare regions` reads it; it takes every region as implausible, so give it a file of that kind alone.

    Args:
      exported: pictures with their answers.
      path: of the file.
      kinds: "implausibility", "misalignment" or both; None: both.

    Returns:
      Number of pictures, and of marks.

    Raises:
      AnnotateError: an unknown kind.
    """
    kinds = tuple(POINT_FIELDS) if kinds is None else kinds
    if not kinds or set(kinds) - set(POINT_FIELDS):
        raise AnnotateError(f"kinds of marks: expected some of {', '.join(POINT_FIELDS)}")
    categories = {kind: number for number, kind in enumerate(POINT_FIELDS, 1)}
    tree: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": []}
    premarks: list[dict[str, Any]] = []
    tree["categories"] = [
        {"id": categories[kind], "name": kind, "keypoints": ["mark"], "skeleton": []} for kind in kinds
    ]
    for one in exported:
        number = len(tree["images"]) + 1
        tree["images"].append(
            {"id": number, "file_name": one.name, "width": one.width, "height": one.height, "prompt": one.prompt}
        )
        for rater, answer in one.answers.items():
            for kind in kinds:
                for x, y in answer[POINT_FIELDS[kind]]:
                    mark = {"id": len(tree["annotations"]) + 1, "image_id": number, "category_id": categories[kind]}
                    tree["annotations"].append({**mark, **_disc(x, y, one.width, one.height), "rater": rater})
        premarks += _premarks(one, number, {kind: categories[kind] for kind in kinds})
    if premarks:
        tree["premarks"] = premarks
    write_atomically(path, json.dumps(tree, ensure_ascii=False) + "\n")
    return len(tree["images"]), len(tree["annotations"])


def _premarks(exported: Exported, number: int, categories: dict[str, int]) -> list[dict[str, Any]]:
    """The different marks of critics of a picture."""
    marks: dict[tuple[Any, ...], dict[str, Any]] = {}
    for rater, shown in exported.shown.items():
        for kind, category in categories.items():
            for place, (x, y, value) in enumerate(shown.marks.get(POINT_FIELDS[kind], [])):
                mark = {"image_id": number, "category_id": category, **_disc(x, y, exported.width, exported.height)}
                whose = {"score": value, "model": shown.model, "shown_to": [], "accepted_by": []}
                mark = marks.setdefault((shown.model, kind, x, y), {**mark, **whose})
                mark["shown_to"].append(rater)
                if place in shown.accepted.get(POINT_FIELDS[kind], []):
                    mark["accepted_by"].append(rater)
    return list(marks.values())


def _disc(x: float, y: float, width: int, height: int) -> dict[str, Any]:
    """A mark's disc, clipped to the picture."""
    radius = RADIUS * height
    polygon = []
    for corner in range(_CORNERS):
        angle = 2 * math.pi * corner / _CORNERS
        polygon += [
            round(min(max(x + radius * math.cos(angle), 0), width), 2),
            round(min(max(y + radius * math.sin(angle), 0), height), 2),
        ]
    left, top = min(polygon[::2]), min(polygon[1::2])
    box = [left, top, round(max(polygon[::2]) - left, 2), round(max(polygon[1::2]) - top, 2)]
    pairs = list(zip(polygon[::2], polygon[1::2]))
    area = abs(sum(a * d - b * c for (a, b), (c, d) in zip(pairs, [*pairs[1:], pairs[0]]))) / 2
    return {
        "segmentation": [polygon],
        "bbox": box,
        "area": round(area, 2),
        "iscrowd": 0,
        "keypoints": [x, y, 2],
        "num_keypoints": 1,
    }
