"""`rahf mask`: pictures → masks as PNG files, to hand to an inpainting pipeline."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from rahf import images as image_lib
from rahf.core import exit_codes, labels, terminal
from rahf.core.batch import HEATMAPS
from rahf.core.errors import ArgumentError, ImageError
from rahf.core.files import write_atomically
from rahf.critic import loading
from rahf.critic.feedback import png
from rahf.critic.predict import given_prompts
from rahf.images import overlay as overlay_lib
from rahf.scoring import files
from rahf.scoring.blocks import MAX_IMAGE
from rahf.steer import masks
from rahf.steer.masks import Mask, MaskOptions

_BATCH = 16
_TINT = (255, 0, 200)


class MaskFile(NamedTuple):
    """One picture's mask on disk. The path of a file that was not requested is None."""

    image: str
    path: pathlib.Path
    latent: pathlib.Path | None
    overlay: pathlib.Path | None
    mask: Mask


def mask_files(
    model: Any,
    images: Sequence[str],
    out: str | os.PathLike,
    prompt: str | Sequence[str] | None = None,
    prompts_file: str | os.PathLike | None = None,
    which: str = "implausibility",
    options: MaskOptions = MaskOptions(),
    latent_grid: int | None = None,
    overlay: bool = False,
    json_file: str | os.PathLike | None = None,
) -> tuple[list[MaskFile], list[str]]:
    """Writes the mask of each picture.

    A mask is 8 bit grey at the size of the upright picture: 255 = repaint, 0 = keep, between them the feathered ramp.
    The mask of a picture without anything to repair is black; leave such a picture as it is.

    Args:
      model: what `rahf.load` takes, or a critic.
      images: paths.
      out: a name that ends in .png, for one picture; else a folder for NAME_mask.png.
      prompt, prompts_file: as in `rahf.critic.predict.given_prompts`.
      which: heatmap, a name in `rahf.core.batch.HEATMAPS`.
      options: how a heatmap becomes a mask.
      latent_grid: side of a cell in pixels: also write ..._latent.png with one pixel per cell (any coverage).
      overlay: also write ..._overlay.png: picture, heatmap and mask side by side.
      json_file: also write paths, coverage, components, peak and note of each.

    Returns:
      The masks that were written, and one line for each picture that could not be used.

    Raises:
      NotPredicted: the model does not predict this heatmap.
      ValueError: wrong options, missing prompts, or a file that would be overwritten.
      OSError: something cannot be written.
    """
    column = labels.position("heatmap", which, HEATMAPS)
    if latent_grid is not None and latent_grid < 1:
        raise ArgumentError(f"latent grid: expected at least 1 pixel per cell, found {latent_grid}")
    paths = _paths(images, pathlib.Path(out), json_file)
    prompts = given_prompts(images, prompt, prompts_file)
    written, errors = [], [str(one) for one in prompts if isinstance(one, ImageError)]
    prompted = [(path, one, to) for path, one, to in zip(images, prompts, paths) if isinstance(one, str)]
    critic = model if callable(model) else loading.load(model)
    if (outputs := getattr(critic, "outputs", None)) is not None:
        outputs.check_heatmap(which)
    for start in range(0, len(prompted), _BATCH):
        for path, to, data, size, heatmap in _heatmaps(critic, prompted[start : start + _BATCH], column, errors):
            mask = masks.noted_from_heatmap(heatmap, size, options)
            written.append(_write(path, to, data, heatmap, mask, which, latent_grid, overlay))
    if json_file is not None:
        document = [_described(one) for one in written]
        write_atomically(pathlib.Path(json_file), (json.dumps(document, indent=2) + "\n").encode())
    return written, errors


def _heatmaps(
    critic: Any, prompted: Sequence[tuple[str, str, pathlib.Path]], column: int, errors: list[str]
) -> Iterator[tuple[str, pathlib.Path, bytes, tuple[int, int], np.ndarray]]:
    """Path, target, encoded picture, its upright size and its heatmap, of those pictures that can be used."""
    usable = []
    for path, prompt, to in prompted:
        try:
            data = files.read(path, MAX_IMAGE)
            usable.append((path, prompt, to, data, image_lib.load_rgb(data, what=path).shape[:2]))
        except ImageError as error:
            errors.append(str(error))
        except (OSError, ValueError) as error:
            errors.append(f"{path}: {getattr(error, 'strerror', None) or error}")
    if usable:
        prediction = critic([one[3] for one in usable], [one[1] for one in usable])
        for (path, _, to, data, size), heatmap in zip(usable, np.asarray(prediction.heatmaps)[:, :, :, column]):
            yield path, to, data, size, heatmap


def _write(path, to, data, heatmap, mask: Mask, which: str, latent_grid: int | None, overlay: bool) -> MaskFile:
    write_atomically(to, png((mask.alpha * 255).round().astype(np.uint8)))
    latent_path = overlay_path = None
    if latent_grid is not None:
        latent_path = to.with_name(f"{to.stem}_latent.png")
        write_atomically(latent_path, png(mask.latent(latent_grid).astype(np.uint8) * 255))
    if overlay:
        overlay_path = to.with_name(f"{to.stem}_overlay.png")
        picture = image_lib.load_rgb(data, what=path)
        write_atomically(overlay_path, png(panel(picture, heatmap, mask, which, latent_grid)))
    return MaskFile(path, to, latent_path, overlay_path, mask)


def panel(
    picture: np.ndarray, heatmap: np.ndarray, mask: Mask, which: str, latent_grid: int | None = None
) -> np.ndarray:
    """Picture, heatmap, mask, and the mask on the latent grid, side by side.

    Args:
      picture: uint8 [h,w,3].
      heatmap: float [s,s] in [0,1].
      mask: of this picture.
      which: name of the heatmap, for its colours.
      latent_grid: pixels per cell; None: without.

    Returns:
      uint8 RGB.
    """
    shown = [("picture", picture), (which, overlay_lib.overlay(picture, heatmap, which))]
    shown.append((f"mask: {mask.coverage:.1%}", _tinted(picture, mask.alpha)))
    if latent_grid is not None:
        cells = mask.latent(latent_grid).repeat(latent_grid, 0).repeat(latent_grid, 1)
        cells = cells[: picture.shape[0], : picture.shape[1]]
        shown.append((f"latent grid: {cells.mean():.1%}", _tinted(picture, cells.astype(np.float32))))
    return np.asarray(overlay_lib.panel(shown, 320))


def _tinted(picture: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    weight = 0.6 * alpha[:, :, None]
    return (picture * (1 - weight) + np.array(_TINT) * weight).round().astype(np.uint8)


def _paths(images: Sequence[str], out: pathlib.Path, json_file) -> list[pathlib.Path]:
    """The path of each mask. No input may be overwritten."""
    if not images:
        raise ArgumentError("no images given")
    if out.suffix.lower() == ".png":
        if len(images) > 1:
            raise ArgumentError(f"--out {out}: {len(images)} pictures have no place in one file; give a folder")
        paths = [out]
    else:
        if out.suffix and not out.is_dir():
            raise ArgumentError(f"--out {out}: masks are PNG files; give a name that ends in .png, or a folder")
        paths = _numbered(images, out)
    beside = [path.with_name(f"{path.stem}_{kind}.png") for path in paths for kind in _KINDS]
    outputs = {os.path.realpath(path) for path in [*paths, *beside, *([json_file] if json_file else [])]}
    for image in images:
        if os.path.realpath(image) in outputs:
            raise ArgumentError(f"{image}: would be overwritten; give another --out")
    return paths


_KINDS = ("latent", "overlay")


def _numbered(images: Sequence[str], folder: pathlib.Path) -> list[pathlib.Path]:
    """NAME_mask.png, numbered where pictures share their name (also if only letters' case differs)."""
    taken: set[str] = set()
    paths = []
    for image in images:
        stem = name = pathlib.Path(image).stem[:50] or "image"  # room for what is added, at 4 bytes a character
        number = 1
        while name.casefold() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.casefold())
        paths.append(folder / f"{name}_mask.png")
    return paths


def _described(one: MaskFile) -> dict[str, Any]:
    paths = {name: None if path is None else str(path) for name, path in zip(("mask", *_KINDS), one[1:4])}
    mask = one.mask
    return {
        "image": one.image,
        **paths,
        "empty": mask.empty,
        "coverage": round(mask.coverage, 6),
        "components": mask.components,
        "peak": round(mask.peak, 6),
        "note": mask.note,
    }


def report(written: Sequence[MaskFile], errors: Sequence[str]) -> int:
    """Prints what was written, and the errors. Returns the exit code."""
    for one in written:
        mask = one.mask
        if mask.note:
            kind = "nothing to repair: " if mask.empty else ""
            terminal.say(f"{one.image}: {kind}{mask.note}", stderr=True)
        regions = "1 region" if mask.components == 1 else f"{mask.components} regions"
        extent = "empty, leave the picture as it is" if mask.empty else f"{mask.coverage:.1%} of the picture, {regions}"
        terminal.say(f"{one.image} → {one.path}: {extent}")
    for line in errors:
        terminal.say(f"error: {line}", stderr=True)
    return exit_codes.of_counts(len(written), len(errors))
