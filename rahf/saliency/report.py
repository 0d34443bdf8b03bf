"""The work behind `rahf evaluate` of a saliency model: every metric on a split, with intervals and baselines."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from data_pipelines import store
from data_pipelines.gaze import density
from data_pipelines.store.records import Record
from rahf import images
from rahf.core import names, terminal
from rahf.core.errors import ArgumentError, DatasetError
from rahf.core.files import check_writable, write_atomically
from rahf.core.version import __version__
from rahf.images.resize import resize
from rahf.metrics import saliency
from rahf.metrics.bootstrap import bootstrap_intervals
from rahf.metrics.saliency import PER_PICTURE, Fixated, Pool, SaliencyMetrics
from rahf.saliency import adapt as adapt_lib
from rahf.saliency import loading
from rahf.saliency.predictor import Saliency

#: Standard deviation of the centre prior, in shares of the longer side: 24 of OSIE's 800 pixels.
_PRIOR_SIGMA = 0.03
_VIEWER_SIDE = 200  # longer side of the maps on which viewers predict each other
_BATCH = 8


@dataclasses.dataclass(frozen=True)
class SaliencyEvaluation:
    """Metrics of a model and of baselines on one split, by name; intervals are those of the model."""

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    baselines: dict[str, dict[str, float]]
    count: int
    per_picture: np.ndarray  # float64 [N,10], columns `rahf.metrics.saliency.PER_PICTURE`


def evaluate(
    model: str | os.PathLike | Saliency,
    *,
    data: str | Sequence[str] | None = None,
    split: str = "test",
    report: str | None = None,
    json_file: str | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    center_bias: str = "learned",
    viewers: bool = False,
    emd: bool = False,
    adapt: int = 0,
    console: Console | None = None,
) -> SaliencyEvaluation:
    """Measures one log-density per picture by all metrics, at the pictures' size.

    The information gain is over the density of the fixations of the training split. Negatives of the shuffled AUC are
    the fixations on the other pictures of the split.

    Args:
      model: a saliency model, or what `rahf.saliency.loading.load` takes.
      data: a dataset of `rahf prepare saliency`; None: the one that it was trained on.
      split: name of the split.
      report: folder for `metrics.json`; None: `RUN/report/SPLIT`, or `FILE-report/SPLIT` beside an exported file.
      json_file: another place for the metrics.
      limit: only the first so many pictures.
      batch_size: pictures at a time.
      center_bias: "learned" or "none".
      viewers: also measure how one viewer is predicted by the others.
      emd: also compute the earth mover's distance.
      adapt: so many pictures of the training split adapt the model first (`rahf.saliency.adapt`); 0: none.
      console: where the table goes.

    Raises:
      ArgumentError: several datasets, or a place that cannot be written.
      DatasetError: no such dataset, or one without densities.
    """
    console = console or terminal.console()
    folder = pathlib.Path(report) if report else _folder(model) / split
    check_writable(folder, "give another folder with --report DIR")
    loaded = model if isinstance(model, Saliency) else loading.load(model)
    path = _one(data if data is not None else loaded.config.data.paths)
    if not store.has_field(path, "saliency"):
        store.splits(path)
        raise DatasetError(f"{path}: has no densities; make the data with `rahf prepare saliency`")
    if adapt:
        loaded = adapt_lib.adapt(loaded, store.open_split(path, loaded.config.data.train_split), adapt)
    source = store.open_split(path, split)
    records = [source[number] for number in range(min(len(source), limit or len(source)))]
    points = [_shares(record) for record in records]
    pool, prior = saliency.pool_of(points), _prior(path, loaded)
    metrics = SaliencyMetrics(pool, prior, emd)
    baselines = {"centre prior": SaliencyMetrics(pool, prior, emd), "uniform": SaliencyMetrics(pool, prior, emd)}
    rows = []
    size = batch_size or _BATCH
    starts = range(0, len(records), size)
    for first in track(starts, f"evaluating {split}", console=terminal.console(stderr=True), transient=True):
        part = records[first : first + size]
        predictions = loaded([record.image for record in part], center_bias=center_bias, batch_size=size)
        for number, record, prediction in zip(range(first, first + size), part, predictions):
            truth = Fixated(points[number], _density(record, prediction.size))
            metrics.update([prediction.log_density], [truth], [number])
            flat = saliency.uniform(prediction.size)
            baselines["centre prior"].update([flat if prior is None else prior(prediction.size)], [truth], [number])
            baselines["uniform"].update([flat], [truth], [number])
            if viewers and record.fixations is not None:
                rows.append(_viewers(record, points[number], prediction.size, pool.without(number), prior))
    values = {name: one.compute() for name, one in baselines.items() if name != "centre prior" or prior is not None}
    if rows:
        means = np.nanmean(np.where(np.isnan(rows).all(0), 0, rows), 0)
        means[np.isnan(rows).all(0)] = np.nan
        values["one viewer by the rest"] = {f"saliency/{name}": float(v) for name, v in zip(PER_PICTURE, means)}
    evaluation = SaliencyEvaluation(
        metrics.compute(), bootstrap_intervals(metrics), values, len(records), metrics.to_arrays()["values"]
    )
    meta = {
        "model": loaded.model_id,
        "data": os.fspath(path),
        "split": split,
        "examples": len(records),
        "center_bias": center_bias,
        "prior": "fixations of the training split" if prior else "uniform: the dataset has no training split",
        "rahf": __version__,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    text = json.dumps(_tree(evaluation) | {"meta": meta}, indent=2) + "\n"
    for file in (folder / "metrics.json", *([pathlib.Path(json_file)] if json_file else [])):
        write_atomically(file, text)
    console.print(table(evaluation, f"{loaded.name} on {split}: {len(records)} pictures"))
    console.print(Text(names.one_line(f"metrics: {folder / 'metrics.json'}")), soft_wrap=True)
    return evaluation


def _folder(model: str | os.PathLike | Saliency) -> pathlib.Path:
    if isinstance(model, Saliency):
        return pathlib.Path(f"{model.name}-report")
    path = pathlib.Path(model)
    if path.is_dir():
        run = next((p for p in (path, *path.resolve().parents[:3]) if (p / "config.json").is_file()), path)
        return run / "report"
    return path.with_name(f"{path.stem}-report")


def _one(data: str | Sequence[str]) -> str:
    paths = [data] if isinstance(data, str | os.PathLike) else list(data)
    if len(paths) != 1:
        raise ArgumentError(f"--data: a saliency model is evaluated on one dataset at a time, found {len(paths)}")
    return paths[0]


def _shares(record: Record) -> np.ndarray | None:
    """Fixations in shares of the picture; None if they were not recorded."""
    if record.fixations is None:
        return None
    header = images.check_header(record.image)
    return record.fixations[:, :2] / np.array([header.width, header.height], np.float32)


def _density(record: Record, size: tuple[int, int]) -> np.ndarray:
    return np.maximum(resize(density.decode(record.saliency, record.uid), size), 0)


def _prior(path: str, model: Saliency) -> Any:
    """The density of the training split's fixations; None if the dataset has none."""
    split = model.config.data.train_split
    if not store.splits(path).get(split):
        return None
    source = store.open_split(path, split)
    pool: Pool = saliency.pool_of([_shares(source[number]) for number in range(len(source))])
    return saliency.centre_prior(pool, _PRIOR_SIGMA) if len(pool.points) else None


def _viewers(
    record: Record, points: np.ndarray, size: tuple[int, int], negatives: np.ndarray, prior: Any
) -> np.ndarray:
    """On a smaller map: a viewer's fixations spread over more than its pixels."""
    scale = min(1.0, _VIEWER_SIDE / max(size))
    shape = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    base = None if prior is None else prior(shape)
    return saliency.viewers_against_the_rest(points, record.fixations[:, 2], shape, _PRIOR_SIGMA, negatives, base)


def _tree(evaluation: SaliencyEvaluation) -> dict[str, Any]:
    finite = lambda values: {name: None if np.isnan(v) else round(float(v), 6) for name, v in values.items()}
    return {
        "metrics": finite(evaluation.metrics),
        "intervals": {
            n: None if np.isnan(e).any() else [round(x, 6) for x in e] for n, e in evaluation.intervals.items()
        },
        "baselines": {name: finite(values) for name, values in evaluation.baselines.items()},
    }


def table(evaluation: SaliencyEvaluation, title: str) -> Table:
    """Metrics, their 95 % intervals, and the baselines beside them."""
    result = Table(title=Text(title))
    for heading in ("", "value", "95% interval", *evaluation.baselines):
        result.add_column(Text(heading), justify="left" if not heading else "right")
    for name in PER_PICTURE:
        key = f"saliency/{name}"
        if np.isnan(evaluation.metrics[key]):
            continue
        low, high = evaluation.intervals[key]
        others = [values.get(key, np.nan) for values in evaluation.baselines.values()]
        cells = [f"{evaluation.metrics[key]:.3f}", f"{low:.3f} to {high:.3f}"]
        result.add_row(name, *cells, *("" if np.isnan(value) else f"{value:.3f}" for value in others))
    return result
