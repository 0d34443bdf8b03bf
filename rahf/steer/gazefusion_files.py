"""`rahf gazefusion evaluate`: prompts and target maps → pictures with and without the targets, and a table."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rahf import images
from rahf.core import names, terminal
from rahf.core.errors import ArgumentError
from rahf.core.files import read_regular, write_atomically
from rahf.core.version import __version__
from rahf.critic import loading as critic_loading
from rahf.diffusion import pipeline_inputs
from rahf.diffusion.pipeline import Pipeline
from rahf.diffusion.published.controlnet_folder import load_controlnet
from rahf.images.resize import resize
from rahf.metrics.steering import STEERING
from rahf.saliency import loading, targets
from rahf.saliency.gazefusion import evaluation as evaluation_lib
from rahf.saliency.gazefusion.evaluation import Evaluation, Target, Ways
from rahf.steer.generate_files import contact_sheet, png
from rahf.steer.generators import load_generator

#: Beside ``map.png``: white where nobody shall look, as the page of `rahf gazefusion page` writes it.
AVOID_SUFFIX = ".avoid.png"
_SHEET, _RESULTS = "contact_sheet.png", "evaluation.json"
_SHOWN = 6  # drawings on the contact sheet


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """How `evaluate_files` draws and judges.

    Attributes:
      controlnet: folder of the ControlNet; None: the one that MODEL brings.
      scales: of it, one way of drawing each.
      judge: saliency model that judges.
      guide, guide_scale: saliency model that guides without training, and how strongly; None: no such way.
      critic: critic of the alignment; None: not measured.
      num_inference_steps, guidance_scale, batch_size, height, width: as of `rahf generate`.
    """

    controlnet: str | None = None
    scales: tuple[float, ...] = (1.0, 0.7)
    judge: str = "saliency-lite"
    guide: str | None = None
    guide_scale: float = 0.2
    critic: str | None = None
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    batch_size: int = 4
    height: int | None = None
    width: int | None = None


def read_target(path: str | os.PathLike, size: tuple[int, int]) -> Target:
    """A target map, and the regions to be avoided of the file beside it, ``map.avoid.png`` of ``map.png``.

    Args:
      path: of a picture, white where people shall look; or of a folder with a picture for each prompt, in the order of
        their names, and without regions.
      size: height and width of the pictures to be drawn.

    Raises:
      ArgumentError: a map that is 0 everywhere, of another aspect, or that asks for mass in those regions; regions of
        another size than the map.
      ImageError, OSError: one of the files cannot be read.
    """
    file = pathlib.Path(path)
    if file.is_dir():
        return _target_of_prompts(file, size)
    beside = file.with_suffix(AVOID_SUFFIX)
    if not beside.is_file():
        return Target(file.stem, targets.read(file, size))
    drawn, grey = (images.load_grey(read_regular(one), what=os.fspath(one)) for one in (file, beside))
    if grey.shape != drawn.shape:
        raise ArgumentError(
            f"{beside}: regions of another size: {grey.shape[1]} x {grey.shape[0]}, the map {file.name} has "
            f"{drawn.shape[1]} x {drawn.shape[0]}"
        )
    targets.check(drawn, os.fspath(file), drawn.shape, grey > 127)
    avoid = resize(grey.astype(np.float32), size) > 127.5
    # Resizing spreads the map over the edge of a region.
    wanted = np.where(avoid, 0, targets.check(drawn, os.fspath(file), size))
    return Target(file.stem, targets.check(wanted, os.fspath(file), size, avoid), avoid)


def _target_of_prompts(folder: pathlib.Path, size: tuple[int, int]) -> Target:
    files = sorted(folder.glob("*.png"))
    if not files:
        raise ArgumentError(f"{folder}: holds no target map; expected a PNG file for each prompt")
    if avoided := [file.name for file in files if file.name.endswith(AVOID_SUFFIX)]:
        raise ArgumentError(f"{folder}: regions to be avoided ({avoided[0]}) belong to a map for all prompts")
    return Target(folder.name, np.stack([targets.read(file, size) for file in files]))


def evaluate_files(
    model: str | os.PathLike | Pipeline,
    prompts: Sequence[str],
    maps: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    seeds: Sequence[int] = (0,),
    options: EvaluateOptions = EvaluateOptions(),
    console: Console | None = None,
) -> Evaluation:
    """Draws every prompt with every seed in every way (`rahf.saliency.gazefusion.evaluation`), judges, and reports.

    Writes ``out/unconditioned/000-seed0.png``, ``out/scale-1/MAP/000-seed0.png``, …, ``out/contact_sheet.png`` (a row
    per target and way) and ``out/evaluation.json``.

    Args:
      model: what `rahf.diffusion.load` takes, a run of GazeFusion, or a pipeline.
      prompts, seeds, maps: at least one each.
      out: folder; must not exist, or be empty.
      options: of drawing and judging.
      console: where the table goes.

    Raises:
      ArgumentError: as `rahf.saliency.gazefusion.evaluation.evaluate`; no pipeline; or a folder that is not empty.
    """
    folder = pathlib.Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArgumentError(f"{folder}: exists already and is not empty; choose another folder")
    pipe = load_generator(model)
    if not isinstance(pipe, Pipeline):
        raise ArgumentError(f"{model}: expected a Stable Diffusion pipeline, found {type(pipe).__name__}")
    if options.controlnet is not None:
        pipe.controlnet = load_controlnet(options.controlnet)
    default, multiple = pipe.config.model.image_size, pipe.scale_factor
    size = pipeline_inputs.size(options.height, options.width, None, default, multiple)
    wanted = [read_target(path, size) for path in maps]
    judge = loading.load(options.judge)
    guide = None if options.guide is None else loading.load(options.guide)
    critic = None if options.critic is None else critic_loading.load(options.critic)
    sampling = {name: getattr(options, name) for name in ("num_inference_steps", "guidance_scale", "batch_size")}
    ways = Ways(options.scales, guide, options.guide_scale, sampling)
    drawings = [(number, int(seed)) for number in range(len(prompts)) for seed in seeds]
    rows: list[np.ndarray] = []
    titles: list[str] = []

    def keep(way: str, target: Target | None, pictures: np.ndarray) -> None:
        place = folder / way.replace(" ", "-") / ("" if target is None else target.name)
        for (number, seed), picture in zip(drawings, pictures):
            write_atomically(place / f"{number:03d}-seed{seed}.png", png(picture))
        shown = np.zeros(pictures.shape[1:3]) if target is None else target.map.mean(0)
        rows.extend([np.repeat(np.round(shown * 255).astype(np.uint8)[..., None], 3, -1), *pictures[:_SHOWN]])
        titles.append(way if target is None else f"{way}: {target.name}")

    result = evaluation_lib.evaluate(pipe, prompts, wanted, judge, seeds, ways, critic, keep)
    write_atomically(folder / _SHEET, png(contact_sheet(rows, titles, 1 + min(len(drawings), _SHOWN))))
    meta = {
        **{name: value for name, value in dataclasses.asdict(options).items() if value is not None},
        "model": os.fspath(model) if isinstance(model, (str, os.PathLike)) else "pipeline",
        "controlnet": None if pipe.controlnet is None else pipe.controlnet.name,
        "judge": judge.model_id,
        "guide": None if guide is None else guide.model_id,
        "critic": options.critic,
        "prompts": list(prompts),
        "seeds": [int(seed) for seed in seeds],
        "maps": [os.fspath(path) for path in maps],
        "rahf": __version__,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    write_atomically(folder / _RESULTS, json.dumps(_tree(result) | {"meta": meta}, indent=2) + "\n")
    console = console or terminal.console()
    console.print(table(result))
    console.print(Text(names.one_line(f"pictures, {_SHEET} and {_RESULTS} in {folder}")), soft_wrap=True)
    return result


def _tree(result: Evaluation) -> dict[str, Any]:
    number = lambda value: round(float(value), 6) if math.isfinite(value) else None  # noqa: E731
    return {
        "drawings": result.drawings,
        "targets": result.targets,
        "ways": {
            way: {
                name: {
                    "value": number(values[name]),
                    "interval": [number(edge) for edge in result.intervals[way][name]],
                    **(
                        {"minus_unconditioned": [number(edge) for edge in result.differences[way][name][:3]]}
                        if way in result.differences
                        else {}
                    ),
                }
                for name in STEERING
            }
            for way, values in result.metrics.items()
        },
    }


def table(result: Evaluation) -> Table:
    """A column per way of drawing; values above their 95 % intervals, metrics without a value left out."""
    title = f"{result.drawings} drawings x {result.targets} targets: target and predicted saliency"
    rendered = Table(title=Text(title), show_lines=True)
    rendered.add_column("")
    for way in result.metrics:
        rendered.add_column(Text(way), justify="right")
    for name in STEERING:
        if all(math.isnan(values[name]) for values in result.metrics.values()):
            continue
        cells = []
        for way, values in result.metrics.items():
            low, high = result.intervals[way][name]
            cells.append("" if math.isnan(values[name]) else f"{values[name]:.3f}\n{low:.3f} to {high:.3f}")
        rendered.add_row(name, *cells)
    return rendered
