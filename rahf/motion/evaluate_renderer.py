"""The work behind `rahf evaluate` of a renderer: frames that it draws from true motion against the true frames.

Beside it stand the ways that need no training: softmax splatting, average splatting, bilinear backward warping, and the
photograph as it is.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np
from rich.console import Console
from rich.progress import track

from data_pipelines.video.records import MotionRecord
from rahf import images
from rahf.core import terminal
from rahf.core.errors import DatasetError
from rahf.core.files import check_writable
from rahf.metrics.bootstrap import bootstrap_intervals
from rahf.metrics.pictures import PictureMetrics
from rahf.motion import features as features_lib
from rahf.motion import renderer_task
from rahf.motion import rows as rows_lib
from rahf.motion.features import FeatureNetwork
from rahf.motion.render import Frames, Renderer
from rahf.motion.rows import Row
from rahf.training import saved_model

_SHOWN = ("pictures/psnr", "pictures/ssim", "pictures/features")
_METHODS = {"softmax splatting": "softmax", "average splatting": "average", "backward warping": "backward"}


def evaluate(
    model: str | os.PathLike,
    *,
    data: str | Sequence[str] | None = None,
    split: str = "test",
    report: str | None = None,
    json_file: str | None = None,
    limit: int | None = None,
    features: str | None = "lite",
    console: Console | None = None,
) -> dict[str, Row]:
    """Draws the later pictures of every clip of a split from its photograph and its motion, and measures them.

    ``pictures/psnr`` is in dB. ``pictures/features`` is the mean difference of the features of a fixed network, the
    perceptual loss of the renderer; it is not LPIPS, and compares rows of one table only.

    Args:
      model: a run directory or checkpoint of the family motion-renderer.
      data: a dataset of `rahf prepare motion`, of any size; None: the one that it was trained on.
      split: name of the split.
      report: folder for `metrics.json`; None: `RUN/report/SPLIT`.
      json_file: another place for the metrics.
      limit: only the first so many clips.
      features: network of the difference of features, as of `rahf.motion.features.load`; None: leave it out.
      console: where the table goes.

    Returns:
      Rows by name.

    Raises:
      ArgumentError: several datasets, a limit below 1, or a place that cannot be written.
      DatasetError: no such data, or a clip without later pictures.
      CheckpointError: no renderer there.
    """
    console = console or terminal.console()
    draw = renderer_task.load(model)
    saved = saved_model.find(model)
    folder = pathlib.Path(report) if report else saved.run / "report" / split
    check_writable(folder, "give another folder with --report DIR")
    path = rows_lib.one_dataset(data if data is not None else saved.config.data.paths, "a renderer")
    clips = rows_lib.clips(path, split, limit)
    network = None if features is None else features_lib.load(features)
    rows = measure(clips, {f"trained renderer ({saved.config.model.splat} splatting)": draw}, network)
    meta = {
        "model": saved.config.workdir,
        "data": os.fspath(path),
        "split": split,
        "clips": len(clips),
        "features": None if network is None else network.name,
    }
    console.print(rows_lib.table(rows, f"{saved.config.workdir} on {split}: {len(clips)} clips", _SHOWN))
    rows_lib.write(rows, meta, folder, json_file, console)
    return rows


def measure(
    clips: Sequence[MotionRecord], trained: dict[str, Frames], network: FeatureNetwork | None
) -> dict[str, Row]:
    """Rows of trained renderers and of what needs no training; arguments as of `evaluate`."""
    values: dict[str, PictureMetrics] = {}
    differences: dict[str, list[float]] = {}
    difference = None if network is None else jax.jit(lambda *pair: network.difference(*pair).mean())
    shown = track(list(enumerate(clips)), "drawing frames", console=terminal.console(stderr=True), transient=True)
    for number, clip in shown:
        if not clip.times:
            raise DatasetError(f"clip {clip.uid} keeps no later picture; prepare the data again")
        truth = [images.load_rgb(target, what=f"later picture of clip {clip.uid}") for target in clip.targets]
        for name, frame in _ways(clip, trained).items():
            drawn = [frame(float(time)) for time in clip.times]
            values.setdefault(name, PictureMetrics()).update([drawn], [truth], [number])
            if difference is not None:
                pair = (np.stack(pictures).astype(np.float32) / 255 for pictures in (drawn, truth))
                differences.setdefault(name, []).append(float(difference(*pair)))
    rows = {}
    for name, metrics in values.items():
        numbers = metrics.compute()
        if name in differences:
            numbers["pictures/features"] = float(np.mean(differences[name]))
        rows[name] = Row(numbers, bootstrap_intervals(metrics))
    return rows


def _ways(clip: MotionRecord, trained: dict[str, Frames]) -> dict[str, Callable[[float], np.ndarray]]:
    """Time of a frame → picture, by name."""
    picture = images.load_rgb(clip.image, what=f"picture of clip {clip.uid}")
    ways = {name: Renderer(picture, clip.volume, network=network).frame for name, network in trained.items()}
    ways |= {name: Renderer(picture, clip.volume, method=method).frame for name, method in _METHODS.items()}
    return ways | {"the photograph, still": lambda time: picture}
