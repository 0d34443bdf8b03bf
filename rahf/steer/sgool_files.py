"""`rahf sgool`: the noise of one picture per seed is optimised; pictures, intermediate ones and the curve on disk."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from rahf.core import hub, shipped
from rahf.core.errors import ArgumentError
from rahf.core.files import write_atomically
from rahf.core.version import __version__
from rahf.critic import energy, loading
from rahf.critic.export import archive
from rahf.diffusion import pipeline
from rahf.diffusion.latents.doodl import DoodlOptions, DoodlResult
from rahf.diffusion.latents.sgool import SaliencyOptions, of_heatmap, sgool
from rahf.saliency import loading as saliency_loading
from rahf.steer.generate_files import png
from rahf.training import saved_model

_CURVE = (480, 320)  # width and height in pixels


def sgool_files(
    model: str | os.PathLike | pipeline.Pipeline,
    prompt: str,
    out: str | os.PathLike,
    critic: Any,
    *,
    score: str = "overall",
    saliency: Any = None,
    heatmap: str | None = None,
    seeds: Sequence[int] = (0,),
    options: DoodlOptions = DoodlOptions(),
    salient: SaliencyOptions = SaliencyOptions(),
    keep_every: int = 10,
    progress: Callable[[int, int, np.ndarray], None] | None = None,
) -> DoodlResult:
    """Raises a critic's score of the whole picture and of its salient part.

    Writes ``out/seed0.png``, ``out/seed0-before0.png``, … of the pictures before every `keep_every` updates,
    ``out/energy.csv`` and ``out/energy.png``.

    Args:
      model: model directory of Stable Diffusion, or what `rahf.diffusion.load` returns.
      critic: what `rahf.load` takes or returns; its energy ``1 - score`` is lowered. Judge with another one.
      saliency: likewise, or a saliency model, whose `heatmap` says where people look; None: `critic`.
      heatmap: its name; None: the first of that model: `implausibility` of a critic, else `saliency`.
      options, salient: see `rahf.diffusion.latents`.

    Raises:
      ArgumentError: numbers that make no sense, or a folder that is not empty.
      NotFinite: an energy or a gradient is not finite.
    """
    folder = pathlib.Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArgumentError(f"{folder}: exists already and is not empty; choose another folder")
    pipe = pipeline.load(model) if isinstance(model, (str, os.PathLike)) else model
    judge = _loaded(critic)
    looks = judge if saliency is None else load_saliency(saliency)
    result = sgool(
        pipe,
        prompt,
        energy.score(judge, [prompt] * len(seeds), score),
        of_heatmap(looks, prompt, heatmap),
        seeds=list(seeds),
        options=options,
        salient=salient,
        keep_every=keep_every,
        progress=progress,
    )
    parameters = {
        "prompt": prompt,
        "critic": _name(critic),
        "score": score,
        "saliency": None if saliency is None else _name(saliency),
        "heatmap": heatmap,
        **dataclasses.asdict(options),
        "salient": dataclasses.asdict(salient),
        "rahf": __version__,
    }
    for number, seed in enumerate(seeds):
        pictures = {f"seed{seed}": result.images[number]}
        pictures |= {f"seed{seed}-before{at}": images[number] for at, images in result.history.items()}
        for name, picture in pictures.items():
            pixels = np.round(picture * 255).astype(np.uint8)
            write_atomically(folder / f"{name}.png", png(pixels, {**parameters, "seed": int(seed)}))
    header = ",".join(["update", *(f"seed{seed}" for seed in seeds)])
    rows = [",".join([str(at), *(f"{value:.6g}" for value in row)]) for at, row in enumerate(result.energy)]
    write_atomically(folder / "energy.csv", "\n".join([header, *rows]) + "\n")
    write_atomically(folder / "energy.png", png(curve(result.energy)))
    return result


def _loaded(model: Any) -> Any:
    return loading.load(model) if isinstance(model, (str, os.PathLike)) else model


def load_saliency(model: Any) -> Any:
    """A saliency model, or a critic in the place of one: what `rahf.load` takes, or such a model itself."""
    if not isinstance(model, (str, os.PathLike)):
        return model
    path = shipped.resolve(model)
    if hub.is_id(path):
        path = hub.download(str(path))
    if loading.is_exported(path):
        is_saliency = archive.kind_of(path) == "saliency"
    else:
        is_saliency = saved_model.find(path).config.model.family in saliency_loading.RUNS
    return saliency_loading.load(path) if is_saliency else loading.load(path)


def _name(model: Any) -> str:
    return os.fspath(model) if isinstance(model, (str, os.PathLike)) else type(model).__name__


def curve(energies: Any) -> np.ndarray:
    """Curves of energies [m,B] over the updates, uint8 [h,w,3] on white, labelled with the largest and smallest."""
    energies = np.asarray(energies, np.float64)
    (width, height), edge = _CURVE, 40
    low, high = float(energies.min()), float(energies.max())
    image = Image.new("RGB", _CURVE, "white")
    pen = ImageDraw.Draw(image)
    pen.rectangle((edge, edge, width - edge, height - edge), outline="black")
    pen.text((2, edge), f"{high:.3g}", fill="black")
    pen.text((2, height - edge - 10), f"{low:.3g}", fill="black")
    pen.text((width // 2 - 20, height - edge + 8), "update", fill="black")
    across = np.linspace(edge, width - edge, len(energies))
    share = (energies - low) / (high - low if high > low else 1.0)
    for number, line in enumerate((height - edge - share * (height - 2 * edge)).T):
        colour = tuple(int(c) for c in np.random.default_rng(number).integers(0, 200, 3))
        pen.line([(x, y) for x, y in zip(across.tolist(), line.tolist())], fill=colour, width=2)
    return np.asarray(image)
