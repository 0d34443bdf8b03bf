"""The layouts of published eye-tracking data, and of a folder of one's own: a folder → the viewed pictures."""

from __future__ import annotations

import csv
import functools
import io
import math
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from data_pipelines.gaze.views import Viewed, read_mask, rows
from data_pipelines.prepare.counts import Refused
from data_pipelines.prepare.stored_images import SUFFIXES
from data_pipelines.store.layout import contents
from rahf.core import json_text
from rahf.core.errors import DatasetError
from rahf.core.files import open_regular, read_regular

Fixations = Callable[[], np.ndarray]


def osie(folder: pathlib.Path) -> list[Viewed]:
    """OSIE (Xu et al. 2014): `stimuli/*.jpg` and `eye/fixations.mat`.

    The split by the position in the sorted list of files, counted from 0: position mod 7 = 3 is test, 5 is dev.
    """
    files = pictures(folder / "stimuli")
    by_name = {}
    for entry in np.atleast_1d(_variable(folder / "eye" / "fixations.mat", "fixations")):
        by_name[str(entry.img)] = functools.partial(_osie_fixations, entry)
    splits = {3: "test", 5: "dev"}
    return [
        Viewed(file.name, file, by_name.get(file.name, _nobody), split=splits.get(position % 7, "train"))
        for position, file in enumerate(files)
    ]


def _osie_fixations(entry: Any) -> np.ndarray:
    viewers = [
        rows(viewer.fix_x, viewer.fix_y, number, viewer.fix_duration)
        for number, viewer in enumerate(np.atleast_1d(entry.subjects))
    ]
    return np.concatenate(viewers or [_nobody()])


def mit1003(folder: pathlib.Path) -> list[Viewed]:
    """MIT1003 (Judd et al. 2009): `ALLSTIMULI/*.jpeg` with `ALLFIXATIONMAPS/*_fixPts.jpg` and `*_fixMap.jpg`."""
    maps = _folder(folder / "ALLFIXATIONMAPS")
    return [
        Viewed(
            file.name,
            file,
            _if_file(maps / f"{file.stem}_fixPts.jpg", read_mask),
            _existing(maps / f"{file.stem}_fixMap.jpg"),
        )
        for file in pictures(folder / "ALLSTIMULI")
    ]


def cat2000(folder: pathlib.Path) -> list[Viewed]:
    """CAT2000 (Borji & Itti 2015): `Stimuli/CATEGORY/*.jpg`, `FIXATIONLOCS/CATEGORY/*.mat`, `FIXATIONMAPS/…/*.jpg`."""
    if (folder / "trainSet").is_dir():
        folder = folder / "trainSet"
    viewed = []
    for file in pictures(folder / "Stimuli", deep=True):
        if "Output" in file.parts:  # a folder of maps beside the pictures of each category
            continue
        place = file.relative_to(folder / "Stimuli")
        points = _if_file(folder / "FIXATIONLOCS" / place.with_suffix(".mat"), _fixation_matrix)
        viewed.append(Viewed(place.as_posix(), file, points, _existing(folder / "FIXATIONMAPS" / place)))
    return viewed


def _fixation_matrix(file: pathlib.Path) -> np.ndarray:
    matrix = np.asarray(_variable(file, "fixLocs"))
    if matrix.ndim != 2:
        raise Refused("malformed", f"{file.name}: fixLocs has shape {matrix.shape}, expected one value per pixel")
    row, column = np.nonzero(matrix)
    return rows(column + 0.5, row + 0.5)


def salicon(folder: pathlib.Path) -> list[Viewed]:
    """SALICON (Jiang et al. 2015): `images/SPLIT`, `fixations/SPLIT/*.mat`, `maps/SPLIT/*.png`; val is called dev."""
    viewed = []
    for name, split in (("train", "train"), ("val", "dev")):
        if not (folder / "images" / name).is_dir():
            continue
        for file in pictures(folder / "images" / name):
            points = _if_file(folder / "fixations" / name / f"{file.stem}.mat", _salicon_fixations)
            viewed.append(
                Viewed(file.name, file, points, _existing(folder / "maps" / name / f"{file.stem}.png"), split)
            )
    if not viewed:
        raise DatasetError(f"{folder / 'images'}: no folder train or val with pictures; expected the layout of SALICON")
    return viewed


def _salicon_fixations(file: pathlib.Path) -> np.ndarray:
    """Places of the mouse count pixels from 1."""
    parts = []
    for number, viewer in enumerate(np.atleast_1d(_variable(file, "gaze"))):
        places = np.asarray(viewer.fixations, np.float64).reshape(-1, 2)
        parts.append(rows(places[:, 0] - 0.5, places[:, 1] - 0.5, number))
    return np.concatenate(parts or [_nobody()])


def plain_folder(folder: pathlib.Path) -> list[Viewed]:
    """A folder of one's own: `images/`, and `fixations.csv`, `fixations.json` or `fixations.mat`, or `maps/`, or both.

    CSV: a header with image, x, y, and perhaps viewer and duration. JSON: a list of objects of these fields, whose x, y
    and duration may be lists. MATLAB: struct array `fixations` as of OSIE. Maps have the names of their pictures, with
    any suffix. Places are pixels of the picture.
    """
    images, maps = folder / "images", _by_stem(folder / "maps")
    present = [file for file in (folder / f"fixations.{end}" for end in ("csv", "json", "mat")) if file.is_file()]
    if len(present) > 1:
        raise DatasetError(f"{folder}: has {' and '.join(file.name for file in present)}; keep one of them")
    if not present and not maps:
        raise DatasetError(
            f"{folder}: expected fixations.csv, fixations.json or fixations.mat, or a folder maps; "
            f"{contents(folder) if folder.is_dir() else 'there is no such folder'}"
        )
    readers = {".csv": _read_csv, ".json": _read_json, ".mat": _read_mat}
    points = readers[present[0].suffix](present[0]) if present else {}
    files = pictures(images, deep=True)
    uids = [file.relative_to(images).as_posix() for file in files]
    unknown = sorted(set(points) - set(uids))
    if unknown:
        raise DatasetError(
            f"{present[0]}: names {len(unknown)} pictures that {images} does not have, first {unknown[0]!r}; "
            "names start from that folder"
        )
    absent = _nobody if present and not maps else None
    return [
        Viewed(uid, file, points.get(uid, absent), maps.get(file.relative_to(images).with_suffix("").as_posix()))
        for uid, file in zip(uids, files)
    ]


#: Reader of each layout, by the name of `--layout`.
LAYOUTS: dict[str, Callable[[pathlib.Path], list[Viewed]]] = {
    "osie": osie,
    "mit1003": mit1003,
    "cat2000": cat2000,
    "salicon": salicon,
    "folder": plain_folder,
}


def pictures(folder: pathlib.Path, deep: bool = False) -> list[pathlib.Path]:
    """The picture files of a folder, sorted by name; `deep`: of its folders, too.

    Raises:
      DatasetError: no such folder, or no picture in it.
    """
    _folder(folder)
    entries: Iterator[pathlib.Path]
    if deep:
        entries = (pathlib.Path(root, name) for root, _, names in os.walk(folder) for name in names)
    else:
        entries = folder.iterdir()
    files = sorted(file for file in entries if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise DatasetError(f"{folder}: no pictures ({', '.join(SUFFIXES)}): {contents(folder)}")
    return files


def _folder(folder: pathlib.Path) -> pathlib.Path:
    if not folder.is_dir():
        parent = folder.parent
        there = contents(parent) if parent.is_dir() else f"{parent} is not there, either"
        raise DatasetError(f"{folder} is no folder; expected it in this layout: {there}")
    return folder


def _existing(file: pathlib.Path) -> pathlib.Path | None:
    return file if file.is_file() else None


def _if_file(file: pathlib.Path, read: Callable[[pathlib.Path], np.ndarray]) -> Fixations | None:
    return functools.partial(read, file) if file.is_file() else None


def _nobody() -> np.ndarray:
    return np.zeros((0, 4))


def _by_stem(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    if not folder.is_dir():
        return {}
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in pictures(folder, deep=True)}


def _variable(file: pathlib.Path, name: str) -> Any:
    """A variable of a MATLAB file (up to version 7.2).

    Raises:
      DatasetError: no such file, not MATLAB's, or without the variable.
    """
    import scipy.io  # takes long, and only needed for MATLAB files

    if not file.is_file():
        raise DatasetError(f"{file} is not there; expected a MATLAB file with {name!r}")
    try:
        variables = scipy.io.loadmat(file, squeeze_me=True, struct_as_record=False)
    except NotImplementedError as error:
        raise DatasetError(
            f"{file}: a MATLAB file of version 7.3, which scipy cannot read; save it with -v7"
        ) from error
    except Exception as error:  # scipy raises many kinds for damaged files
        raise DatasetError(f"{file}: no readable MATLAB file ({error})") from error
    if name not in variables:
        others = ", ".join(sorted(key for key in variables if not key.startswith("_"))) or "nothing"
        raise DatasetError(f"{file}: has no variable {name!r}; it has {others}")
    return variables[name]


def _read_mat(file: pathlib.Path) -> dict[str, Fixations]:
    entries = np.atleast_1d(_variable(file, "fixations"))
    return {str(entry.img): functools.partial(_osie_fixations, entry) for entry in entries}


def _read_csv(file: pathlib.Path) -> dict[str, Fixations]:
    with io.TextIOWrapper(open_regular(file), newline="", encoding="utf-8-sig") as opened:
        reader = csv.DictReader(opened)
        missing = {"image", "x", "y"} - set(reader.fieldnames or ())
        if missing:
            raise DatasetError(f"{file}: its header lacks {', '.join(sorted(missing))}; found {reader.fieldnames}")
        return _grouped(file, list(reader))


def _read_json(file: pathlib.Path) -> dict[str, Fixations]:
    try:
        entries = json_text.parse(read_regular(file))
    except ValueError as error:
        raise DatasetError(f"{file}: no JSON ({error})") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DatasetError(f"{file}: expected a list of objects with image, x and y")
    return _grouped(file, entries)


def _grouped(file: pathlib.Path, entries: list[dict[str, Any]]) -> dict[str, Fixations]:
    """Fixations by picture; names of viewers become numbers in the order in which they occur."""
    viewers: dict[Any, int] = {}
    by_image: dict[str, list[np.ndarray]] = {}
    for number, entry in enumerate(entries, 1):
        image = entry.get("image")
        if not isinstance(image, str) or not image:
            raise DatasetError(f"{file}: entry {number} names no image")
        viewer = entry.get("viewer")
        place = -1 if viewer in (None, "") else viewers.setdefault(str(viewer), len(viewers))
        duration = entry.get("duration")
        try:
            part = rows(entry.get("x"), entry.get("y"), place, math.nan if duration in (None, "") else duration)
        except Refused as why:
            raise DatasetError(f"{file}: entry {number} ({image}): {why}") from why
        by_image.setdefault(image, []).append(part)
    return {image: functools.partial(np.concatenate, parts) for image, parts in by_image.items()}
