"""The work behind `rahf evaluate` of a motion model: motion that it draws for test photographs against their true one.

Beside it stands what needs no model: the motion of the next clip of the split, pixel by pixel, and no motion at all.
The phase of a swing is chance, so that no model can aim at a correlation; power by frequency, directions and places are
what a photograph tells.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.text import Text

from data_pipelines.video import read
from data_pipelines.video.records import MotionRecord
from data_pipelines.video.volume import SpectralVolume
from rahf import images
from rahf.core import names, terminal
from rahf.core.errors import ArgumentError, DatasetError
from rahf.core.files import check_writable
from rahf.metrics.bootstrap import bootstrap_intervals
from rahf.metrics.frechet import frechet_distance
from rahf.metrics.motion import MotionMetrics
from rahf.motion import features as features_lib
from rahf.motion import loops, render
from rahf.motion import model as model_lib
from rahf.motion import rows as rows_lib
from rahf.motion import spectrum as spectrum_lib
from rahf.motion.features import FeatureNetwork
from rahf.motion.model import GUIDANCE_SCALE, MotionGenerator
from rahf.motion.rows import Row

#: Frames of a clip whose features make the Fréchet distance.
_FRAMES = 8
_SHOWN = tuple(f"motion/{name}" for name in ("power", "direction", "place", "correlation", "loop_error", "frechet"))


@dataclasses.dataclass(frozen=True)
class Drawing:
    """How a model draws.

    Attributes:
      seeds: one motion of every photograph each.
      steps: of DDIM.
      guidance_scale: towards the photograph.
      loop_scales: weights of self-guidance towards a loop, each a row of its own; 0: none.
    """

    seeds: Sequence[int] = (0,)
    steps: int = 50
    guidance_scale: float = GUIDANCE_SCALE
    loop_scales: Sequence[float] = (0.0,)


def evaluate(
    model: str | os.PathLike | MotionGenerator,
    *,
    data: str | Sequence[str] | None = None,
    split: str = "test",
    report: str | None = None,
    json_file: str | None = None,
    limit: int | None = None,
    drawing: Drawing = Drawing(),
    features: str | None = "lite",
    console: Console | None = None,
) -> dict[str, Row]:
    """Draws a motion for every photograph of a split and measures it (`rahf.metrics.motion`).

    ``motion/loop_error`` is equation 5 in pixels of the grid. ``motion/frechet`` is a Fréchet distance between the
    clips moved by drawn and by true motion, over mean and deviation in time of a network's features; it is not the FVD
    of papers, and tells only between rows of one table.

    Args:
      model: a motion model, or what `rahf.motion.model.load` takes.
      data: a dataset of `rahf prepare motion`; None: the one that it was trained on.
      split: name of the split.
      report: folder for `metrics.json`; None: `RUN/report/SPLIT`.
      json_file: another place for the metrics.
      limit: only the first so many clips.
      drawing: how the model draws.
      features: network of the Fréchet distance, as of `rahf.motion.features.load`; None: leave the distance out.
      console: where the table goes.

    Returns:
      Rows by name.

    Raises:
      ArgumentError: several datasets, no seed, or a place that cannot be written.
      DatasetError: no such data, or clips of another size than the model's.
      CheckpointError: no motion model there.
    """
    console = console or terminal.console()
    if not drawing.seeds or not drawing.loop_scales:
        raise ArgumentError("evaluate: expected a seed and a loop scale at least")
    generator = model if isinstance(model, MotionGenerator) else model_lib.load(model)
    folder = pathlib.Path(report) if report else _run_folder(model, generator) / "report" / split
    check_writable(folder, "give another folder with --report DIR")
    path = rows_lib.one_dataset(data if data is not None else generator.config.data.paths, "a motion model")
    clips = _clips(path, split, limit, generator)
    network = None if features is None else features_lib.load(features)
    measured = _Measured(clips, network, len(drawing.seeds))
    rows = {}
    for scale in drawing.loop_scales:
        name = f"drawn, loop scale {scale:g}" if scale else "drawn"
        rows[name] = measured.row(_drawn(generator, clips, drawing, scale))
    rows["motion of the next clip"] = measured.row([clips[(n + 1) % len(clips)].volume for n in range(len(clips))])
    rows["no motion"] = measured.row([_still(clip.volume) for clip in clips])
    rows["true motion"] = measured.row([clip.volume for clip in clips])
    meta = {
        "model": generator.config.workdir,
        "data": os.fspath(path),
        "split": split,
        "clips": len(clips),
        **{field: getattr(drawing, field) for field in ("seeds", "steps", "guidance_scale")},
        "features": None if network is None else network.name,
    }
    title = f"{generator.config.workdir} on {split}: {len(clips)} clips"
    console.print(rows_lib.table(rows, title, _SHOWN))
    if network is not None:
        console.print(Text(names.one_line(f"frechet: over features of {network.name}")), soft_wrap=True)
    rows_lib.write(rows, meta, folder, json_file, console)
    return rows


class _Measured:
    """Clips, and what of them all rows share."""

    def __init__(self, clips: Sequence[MotionRecord], network: FeatureNetwork | None, seeds: int):
        self._clips, self._seeds = clips, seeds
        self._pictures = [images.load_rgb(clip.image, what=f"picture of clip {clip.uid}") for clip in clips]
        self._describe = None if network is None else clip_features(network)
        self._true = None if network is None else self._features([clip.volume for clip in clips])

    def row(self, volumes: Sequence[SpectralVolume]) -> Row:
        """The metrics of volumes: those of all clips for the first seed, then for the next one."""
        truths = [self._clips[number % len(self._clips)].volume for number in range(len(volumes))]
        terms = max(len(volume.spectrum) for volume in [*volumes, *truths])
        metrics = MotionMetrics(terms)
        spectra = [volume.spectrum for volume in volumes]
        metrics.update(spectra, [truth.spectrum for truth in truths], range(len(volumes)))
        values = metrics.compute()
        values["motion/loop_error"] = float(np.mean([_loop_error(one.spectrum, one.frames) for one in volumes]))
        if self._describe is not None and len(self._clips) > 1:
            drawn = self._features(volumes).reshape(-1, *self._true.shape)
            # Of each seed for itself: distances of sets of different sizes cannot be compared.
            values["motion/frechet"] = float(np.mean([frechet_distance(one, self._true) for one in drawn]))
        return Row(values, bootstrap_intervals(metrics))

    def _features(self, volumes: Sequence[SpectralVolume]) -> np.ndarray:
        """float64 [n,d]."""
        rows = []
        for number, volume in enumerate(volumes):
            drawing = render.Renderer(self._pictures[number % len(self._pictures)], volume)
            times = np.arange(_FRAMES) * volume.frames / _FRAMES
            rows.append(self._describe(np.stack([drawing.frame(float(time)) for time in times])))
        return np.stack(rows).astype(np.float64)


def clip_features(network: FeatureNetwork) -> Callable[[np.ndarray], np.ndarray]:
    """What describes a clip: (frames uint8 [n,h,w,3]) → float32 [2c].

    The coarsest map of each frame is averaged over the picture; mean and standard deviation over the frames follow one
    another: what is shown, and how it changes.
    """

    @jax.jit
    def describe(frames):
        pooled = network.maps(frames.astype("float32") / 255)[-1].mean((1, 2))
        return jax.numpy.concatenate([pooled.mean(0), pooled.std(0)])

    return lambda frames: np.asarray(describe(frames))


@jax.jit
def _error_of_texture(texture: Any) -> Any:
    return loops.loop_error(texture)


def _loop_error(spectrum: np.ndarray, frames: int) -> float:
    return float(_error_of_texture(spectrum_lib.to_texture(spectrum, frames)))


def _drawn(
    generator: MotionGenerator, clips: Sequence[MotionRecord], drawing: Drawing, loop_scale: float
) -> list[SpectralVolume]:
    jobs = [(seed, clip) for seed in drawing.seeds for clip in clips]
    shown = track(jobs, "drawing motion", console=terminal.console(stderr=True), transient=True)
    return [
        generator.volume(images.load_rgb(clip.image), seed, drawing.steps, drawing.guidance_scale, loop_scale)
        for seed, clip in shown
    ]


def _still(volume: SpectralVolume) -> SpectralVolume:
    return volume._replace(spectrum=np.zeros_like(volume.spectrum))


def _clips(path: str, split: str, limit: int | None, generator: MotionGenerator) -> list[MotionRecord]:
    config = generator.config.model
    described = read.description(path)
    if (described.width, described.height) != (config.width, config.height):
        raise DatasetError(
            f"{path}: clips of {described.width} x {described.height} pixels; the model draws {config.width} x "
            f"{config.height}: prepare data of that --size"
        )
    return rows_lib.clips(path, split, limit)


def _run_folder(model: Any, generator: MotionGenerator) -> pathlib.Path:
    return pathlib.Path(generator.config.workdir) if isinstance(model, MotionGenerator) else model_lib.run_of(model)
