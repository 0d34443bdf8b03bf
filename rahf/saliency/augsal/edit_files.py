"""The work behind `rahf edit`: a picture edited where people look, before and after side by side, and JSON."""

from __future__ import annotations

import io
import json
import os
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from rahf import images
from rahf.core import hub, shipped, terminal
from rahf.core.errors import ArgumentError, CheckpointError
from rahf.core.files import check_writable, read_regular, write_atomically
from rahf.core.version import __version__
from rahf.diffusion import loading as diffusion_loading
from rahf.diffusion import saved as saved_lib
from rahf.diffusion.pipeline import Pipeline
from rahf.images import overlay, pictures
from rahf.images.resize import resize
from rahf.saliency import loading
from rahf.saliency.augsal import editor as editor_lib
from rahf.saliency.augsal import latent_edits
from rahf.saliency.augsal import model as model_lib
from rahf.saliency.augsal.editor import EditOptions, Editor, EditResult
from rahf.saliency.predictor import Saliency

JSON_FILE = "edit.json"
#: The autoencoder whose direction of brightness is known: that of Stable Diffusion 1 and 2.
_SD_SCALING = 0.18215
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def edit_file(
    model: str | os.PathLike | Pipeline | model_lib.Augsal,
    picture: str | os.PathLike,
    prompt: str,
    out: str | os.PathLike,
    options: EditOptions = EditOptions(),
    *,
    saliency: Any = "saliency-lite",
    size: int | None = None,
    fit_gamma: str | os.PathLike | None = None,
) -> EditResult:
    """Edits one picture. Writes ``NAME.edited.png``, ``NAME.before.png``, ``NAME.mask.png``,
    ``NAME.before-after.png`` and ``edit.json`` into `out`.

    Args:
      model: model directory of Stable Diffusion, a run of Augsal, or what either is loaded as. A run of Augsal reads
        the properties out itself, for pictures of its own size.
      picture: path; resized so that its longer side is `size`, sides rounded to whole cells.
      prompt: what it shows.
      out: folder; files of the same names are replaced.
      options: of the edit.
      saliency: a saliency model or its path, or a picture file of a map, white where people look.
      size: longer side in pixels; None: the model's.
      fit_gamma: folder of pictures from which the direction of brightness is fitted; None: that of Stable Diffusion 1
        and 2, which other autoencoders do not have.

    Raises:
      ArgumentError: as of `Editor`; an autoencoder whose direction of brightness is not known; a size below one cell.
      CheckpointError: no such model. ImageError: a picture cannot be used.
    """
    check_writable(out, "give another folder with --out DIR")
    if isinstance(model, (str, os.PathLike)):
        model = _loaded(model)
    pipe = model.pipe if isinstance(model, model_lib.Augsal) else model
    measure = model.measure if isinstance(model, model_lib.Augsal) else None
    original, _ = pictures.rgb(os.fspath(picture), "the picture")
    longer = pipe.config.model.image_size if size is None else size
    shape = _shape(original.shape[:2], longer, _unit(pipe))
    resized = np.clip(resize(original.astype(np.float32) / 255, shape), 0, 1)
    gamma = _gamma(pipe, fit_gamma, shape)
    looks, judge = _saliency(saliency, resized)
    result = Editor(pipe, gamma, measure=measure)(resized, prompt, looks, options)
    _write(pathlib.Path(out), pathlib.PurePath(picture).stem, resized, result, judge, prompt, options)
    return result


def _loaded(path: str | os.PathLike) -> Pipeline | model_lib.Augsal:
    saved = saved_lib.find(path)
    if saved.config.model.family == "augsal":
        return model_lib.load(path)
    pipe = diffusion_loading.load(path)
    if not isinstance(pipe, Pipeline):
        raise CheckpointError(
            f"{path}: a diffusion model in pixels, which has no latents to edit; give a model of "
            "`rahf import stable-diffusion`"
        )
    return pipe


def _unit(pipe: Pipeline) -> int:
    """Pixels that a side is a multiple of, so that every level of the U-Net has whole cells."""
    return pipe.scale_factor * 2 ** (len(pipe.config.model.unet.block_out_channels) - 1)


def _shape(size: tuple[int, int], longer: int, unit: int) -> tuple[int, int]:
    if longer < unit:
        raise ArgumentError(f"--size {longer}: expected at least {unit} pixels, one cell of the U-Net's smallest level")
    scale = longer / max(size)
    return tuple(max(unit, round(side * scale / unit) * unit) for side in size)


def _gamma(pipe: Pipeline, folder: str | os.PathLike | None, shape: tuple[int, int]) -> Any:
    if folder is None:
        vae, patches = pipe.config.model.vae, pipe.config.model.patches is not None
        of_sd1 = vae is not None and vae.scaling_factor == _SD_SCALING and pipe.channels == len(latent_edits.SD1_GAMMA)
        if not (patches or of_sd1):
            raise ArgumentError(
                "the direction of brightness is known of the autoencoder of Stable Diffusion 1 and 2, and of patches "
                "of pixels; name a folder of some hundred pictures with --fit-gamma DIR, from which it is found"
            )
        return None
    root = pathlib.Path(folder)
    if not root.is_dir():
        raise ArgumentError(f"--fit-gamma {folder}: expected a folder of pictures")
    files = sorted(path for path in root.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not files:
        raise ArgumentError(f"--fit-gamma {folder}: holds no pictures")
    stack = [resize(pictures.rgb(os.fspath(path), "a picture")[0].astype(np.float32) / 255, shape) for path in files]
    colors = editor_lib.fit_gamma(pipe, np.clip(np.stack(stack), 0, 1))
    terminal.say(
        f"direction of brightness in latents, of {len(files)} pictures: "
        f"{', '.join(f'{value:.3f}' for value in colors.gamma)} (the linear map explains {colors.r2:.0%})"
    )
    return colors.gamma


def _saliency(source: Any, picture: np.ndarray) -> tuple[np.ndarray, Saliency | None]:
    """A map of where people look, and the model that judges the edit, if there is one."""
    if isinstance(source, (str, os.PathLike)) and pictures.looks_like_image(os.fspath(source)):
        name = os.fspath(source)
        return np.asarray(images.load_grey(read_regular(source), what=name), np.float32), None
    model = source
    if isinstance(source, (str, os.PathLike)):
        is_id = hub.is_id(shipped.resolve(source))
        model = loading.load(hub.download(str(source)) if is_id else source)
    (prediction,) = model(np.round(picture * 255).astype(np.uint8))
    return prediction.heatmap, model


def _write(
    folder: pathlib.Path,
    stem: str,
    original: np.ndarray,
    result: EditResult,
    judge: Saliency | None,
    prompt: str,
    options: EditOptions,
) -> None:
    eight_bits = lambda x: np.round(np.clip(x, 0, 1) * 255).astype(np.uint8)  # noqa: E731
    before, after = eight_bits(result.before), eight_bits(result.image)
    mask = np.kron(result.mask, np.ones([a // b for a, b in zip(before.shape, result.mask.shape)], np.float32))
    entry: dict[str, Any] = {
        "prompt": prompt,
        "property": options.property,
        "word": result.word,
        "strength": result.strength,
        "rounds": result.rounds,
        "mask_share": float(result.mask.mean()),
        "inversion_error": result.error,
        "properties_before": result.properties_before,
        "properties_after": result.properties_after,
        "rahf": __version__,
    }
    titles = ["original", f"before: {result.word}", f"{options.property}, strength {result.strength:.3g}"]
    if judge is not None:
        densities = [one.density for one in judge([before, after])]
        entry["saliency_in_mask_before"], entry["saliency_in_mask_after"] = (
            float((density * mask).sum()) for density in densities
        )
        entry["saliency_model"] = judge.model_id
    shown = [eight_bits(original), overlay.overlay(before, 0.5 * mask, "saliency", contour=0.5), after]
    files = {
        "edited": after,
        "before": before,
        "mask": eight_bits(mask),
        "before-after": np.asarray(overlay.panel(list(zip(titles, shown)))),
    }
    for kind, pixels in files.items():
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        write_atomically(folder / f"{stem}.{kind}.png", buffer.getvalue())
    entry["files"] = {kind: f"{stem}.{kind}.png" for kind in files}
    write_atomically(folder / JSON_FILE, json.dumps(entry, indent=2) + "\n")
