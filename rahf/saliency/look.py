"""The work behind `rahf look`: overlay, map, sketch of a scanpath and JSON of pictures."""

from __future__ import annotations

import io
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from rahf.core import exit_codes, hub, names, shipped, terminal
from rahf.core.errors import ArgumentError, ImageError
from rahf.core.files import check_writable, write_atomically
from rahf.images import overlay, pictures
from rahf.saliency import loading
from rahf.saliency.maps import Glance, SaliencyMap
from rahf.saliency.predictor import Saliency

DEFAULT = "saliency-lite"
JSON_FILE = "saliency.json"
_COLOUR, _SHOWN = (255, 60, 40), 1024


def model_and_images(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Tells a model in front of pictures from a picture.

    Raises:
      ArgumentError: a model without pictures.
    """
    first, rest = arguments[0], list(arguments[1:])
    if not _is_model(first):
        return DEFAULT, list(arguments)
    if not rest:
        raise ArgumentError(f"{first}: is a model; name the pictures to look at behind it")
    return first, rest


def _is_model(path: str) -> bool:
    if os.path.isdir(path):  # a folder named like a picture is one that cannot be read, unless a model lies in it
        return not pictures.looks_like_image(path) or os.path.exists(os.path.join(path, "config.json"))
    if os.path.exists(path):
        return loading.is_exported(path)
    return path in shipped.names() or (not pictures.looks_like_image(path) and hub.is_id(path))


def look(
    model: str | os.PathLike | Saliency,
    images: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    center_bias: str = "learned",
    glances: int = 6,
    batch_size: int | None = None,
) -> int:
    """Writes what a model predicts of pictures. A picture that cannot be used is named and left out.

    Args:
      model: a saliency model, or what `rahf.saliency.loading.load` takes.
      images: paths.
      out: folder; files of the same names are replaced.
      center_bias: "learned" or "none".
      glances: places of the sketched scanpath.
      batch_size: pictures at a time.

    Returns:
      The exit code: 0 if all pictures could be used.

    Raises:
      ArgumentError: as of a call of the model, or a folder that cannot be written.
      CheckpointError, ExportError: no saliency model.
    """
    if glances < 1:
        raise ArgumentError(f"--glances {glances}: expected at least 1")
    check_writable(out, "give another folder with --out DIR")
    if not isinstance(model, Saliency):
        path = hub.download(str(model)) if hub.is_id(shipped.resolve(model)) else model
        model = loading.load(path)
    folder, stems = pathlib.Path(out), _stems(images)
    entries: list[dict[str, Any]] = []
    refused = 0
    size = batch_size or 8
    for first in range(0, len(images), size):
        decoded, places = [], []
        for number in range(first, min(first + size, len(images))):
            try:
                decoded.append(pictures.rgb(images[number], f"image {number}")[0])
                places.append(number)
            except ImageError as error:
                refused += 1
                terminal.say(names.one_line(f"left out: {error}"))
        if not decoded:
            continue
        predictions = model(decoded, center_bias=center_bias, batch_size=batch_size)
        for number, picture, prediction in zip(places, decoded, predictions):
            entry = prediction.to_dict(glances) | {"image": os.fsdecode(images[number])}
            entry["files"] = _write(folder, stems[number], picture, prediction, glances)
            entries.append(entry)
    tree = {
        "model": model.model_id,
        "weight_license": model.weight_license,
        "center_bias": center_bias,
        "images": entries,
    }
    write_atomically(folder / JSON_FILE, json.dumps(tree, indent=2) + "\n")
    terminal.say(f"{len(entries)} of {len(images)} pictures: {folder / JSON_FILE}")
    return exit_codes.of_counts(len(entries), refused)


def _stems(images: Sequence[str | os.PathLike]) -> list[str]:
    """A name for each picture's files; a second picture of a name gets a number."""
    stems: list[str] = []
    for image in images:
        stem = base = pathlib.PurePath(os.fsdecode(image)).name.rpartition(".")[0] or "image"
        number = 2
        while stem in stems:
            stem, number = f"{base}-{number}", number + 1
        stems.append(stem)
    return stems


def _write(
    folder: pathlib.Path, stem: str, picture: np.ndarray, prediction: SaliencyMap, glances: int
) -> dict[str, str]:
    heatmap = prediction.heatmap
    files = {
        "overlay": overlay.overlay(picture, heatmap, "saliency"),
        "map": np.round(65535 * heatmap.astype(np.float64)).astype(np.uint16),
        "scanpath": sketch(picture, prediction.scanpath(glances)),
    }
    for kind, pixels in files.items():
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        write_atomically(folder / f"{stem}.{kind}.png", buffer.getvalue())
    return {kind: f"{stem}.{kind}.png" for kind in files}


def sketch(picture: np.ndarray, scanpath: Sequence[Glance]) -> np.ndarray:
    """The picture in grey, at most 1024 pixels long, with numbered circles and lines; larger circles hold more mass."""
    height, width = picture.shape[:2]
    scale = min(1.0, _SHOWN / max(height, width))
    shape = max(1, round(width * scale)), max(1, round(height * scale))
    image = Image.fromarray(picture).convert("L").resize(shape).convert("RGB")
    pen = ImageDraw.Draw(image)
    unit = max(shape) / 100
    places = [(one.x * scale, one.y * scale) for one in scanpath]
    if len(places) > 1:
        pen.line(places, fill=_COLOUR, width=max(1, round(unit / 3)))
    for number, ((x, y), one) in enumerate(zip(places, scanpath), 1):
        radius = unit * (1.5 + 3 * min(1.0, one.mass * 3))
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_COLOUR, outline="white")
        pen.text((x, y), str(number), fill="white", font=overlay.font(max(10, round(2 * unit))), anchor="mm")
    return np.asarray(image)
