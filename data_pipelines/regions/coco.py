"""Reads a COCO file: pictures with their annotations, splits and prompts."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from data_pipelines.prepare import splits
from data_pipelines.prepare.counts import Refused
from rahf.core.errors import DatasetError
from rahf.core.files import check_not_lfs_pointer, read_regular

_PROMPT_FIELDS = ("prompt", "caption")
#: Fields of a picture and of an annotation that are read, or that every COCO file has.
_PICTURE_FIELDS = {"id", "file_name", "width", "height", "split", "license", "coco_url", "flickr_url", "date_captured",
                   *_PROMPT_FIELDS}  # fmt: skip
_REGION_FIELDS = {"id", "image_id", "category_id", "bbox", "segmentation", "area", "iscrowd", "caption"}


class CocoPicture(NamedTuple):
    """One entry of ``images``."""

    number: int  # place in the list
    tree: Mapping[str, Any]
    annotations: list[Mapping[str, Any]]


class CocoFile(NamedTuple):
    """A parsed file."""

    pictures: list[CocoPicture]
    largest_severity: float  # 1, or the largest if it is more than 1
    without_picture: int  # annotations of pictures that are not listed
    unread: dict[str, int]  # fields that are not read, with their numbers
    license: str  # as the file states it, or ""


def read(path: pathlib.Path, severity: str) -> CocoFile:
    """Reads a COCO file.

    Args:
      path: the file.
      severity: field of an annotation that weights it.

    Raises:
      DatasetError: no such file, not JSON, or no COCO file.
    """
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "is no regular file" if path.exists() else "does not exist"
        raise DatasetError(f"--annotations {path} {state}; expected a COCO JSON file")
    check_not_lfs_pointer(path)
    try:
        tree = json.loads(read_regular(path))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"--annotations {path}: not JSON ({error})") from error
    lists = {name: tree.get(name) for name in ("images", "annotations")} if isinstance(tree, dict) else {}
    if not lists or not all(isinstance(value, list) for value in lists.values()):
        names = ", ".join(tree) if isinstance(tree, dict) else type(tree).__name__
        raise DatasetError(
            f"--annotations {path} is no COCO file: expected an object with the lists 'images' and 'annotations', "
            f"found {names:.200}"
        )
    pictures = [CocoPicture(n, one if isinstance(one, dict) else {}, []) for n, one in enumerate(lists["images"])]
    by_id = {_key(one.tree.get("id")): one for one in reversed(pictures)}
    unread: dict[str, int] = {}
    lost, largest = 0, 1.0
    for annotation in lists["annotations"]:
        owner = by_id.get(_key(annotation.get("image_id"))) if isinstance(annotation, dict) else None
        if owner is None:
            lost += 1
            continue
        owner.annotations.append(annotation)
        value = annotation.get(severity)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            largest = max(largest, float(value))
        _note(unread, annotation, _REGION_FIELDS | {severity}, "annotations")
    for one in pictures:
        _note(unread, one.tree, _PICTURE_FIELDS, "images")
    return CocoFile(pictures, largest, lost, unread, _license(tree))


def prompt_of(picture: CocoPicture) -> str:
    """The prompt: a field of the picture, or a caption among its annotations; "" if there is none."""
    for source in (picture.tree, *picture.annotations):
        for name in _PROMPT_FIELDS:
            value = source.get(name)
            if isinstance(value, str) and value.strip():
                return value
    return ""


def regions_of(picture: CocoPicture) -> list[Mapping[str, Any]]:
    """The annotations that mark something; captions do not."""
    return [one for one in picture.annotations if one.get("segmentation") or one.get("bbox") is not None]


def split_of(picture: CocoPicture, dev: float, test: float) -> str:
    """The picture's own split, else by a hash of its prompt, or of its name if it has none.

    Raises:
      Refused: an unknown split.
    """
    own = picture.tree.get("split")
    own = {"val": "dev", "validation": "dev"}.get(own, own) if isinstance(own, str) else own
    if own is None:
        return splits.by_hash(splits.key(prompt_of(picture) or str(picture.tree.get("file_name"))), dev, test)
    if own not in splits.SPLITS:
        raise Refused("malformed", f"split is {own!r:.40}, expected {', '.join(splits.SPLITS)}, or no such field")
    return own


def weight_of(annotation: Mapping[str, Any], severity: str, largest: float) -> float:
    """Weight of a region in (0, 1]: its severity as a share of the largest; 1 without one.

    Raises:
      Refused: a severity that is no number from 0 on.
    """
    value = annotation.get(severity)
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        name = f"annotation {annotation.get('id')}"
        raise Refused("bad region", f"{name}: {severity} is {value!r:.40}, expected a number from 0 on")
    return float(value) / largest


def _key(value: Any) -> str:
    return repr(value)


def _note(unread: dict[str, int], tree: Mapping[str, Any], known: set[str], where: str) -> None:
    for name in tree:
        if name not in known:
            label = f"{where}.{ascii(str(name)[:60])[1:-1]}"
            if label in unread or len(unread) < 100:
                unread[label] = unread.get(label, 0) + 1


def _license(tree: Mapping[str, Any]) -> str:
    names = [one.get("name") for one in tree.get("licenses") or () if isinstance(one, dict)]
    return ", ".join(str(name) for name in names if name)
