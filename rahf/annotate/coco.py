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
    """Writes the file.

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
    write_atomically(path, json.dumps(tree, ensure_ascii=False) + "\n")
    return len(tree["images"]), len(tree["annotations"])


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
