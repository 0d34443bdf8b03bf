"""The work behind `rahf evaluate`: a model on a split, shown as terminal table, JSON and HTML report."""

from __future__ import annotations

import dataclasses
import datetime
import json
import pathlib
import shlex
import sys
from collections.abc import Sequence

import jax
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.text import Text

from data_pipelines import store
from data_pipelines.loading.labels import Labels
from data_pipelines.loading.loader import eval_loader
from rahf.config import Config
from rahf.core import names, terminal
from rahf.core.files import check_writable, write_atomically
from rahf.core.version import __version__
from rahf.critic import provenance
from rahf.critic.evaluation import constant, several_sets
from rahf.critic.evaluation.evaluator import CriticEvaluation
from rahf.critic.evaluation.model import Opened, open_model
from rahf.critic.evaluation.report.page import metrics_json, metrics_table, write_report
from rahf.critic.evaluation.training_mean import training_mean
from rahf.training import sharding
from rahf.training.progress import read_rows


def run(
    model: str,
    *,
    data: str | Sequence[str] | None = None,
    split: str = "test",
    report: str | None = None,
    json_file: str | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    generate: bool = True,
    examples: int = 60,
    console: Console | None = None,
) -> CriticEvaluation:
    """Evaluates a model on a split and writes the report.

    Args:
      model: run directory (best checkpoint, else the newest), checkpoint directory, or exported file. Of an
        exported file no losses and no generated keywords are measured.
      data: prepared dataset, or several; None: those that the model was trained on. Of several, each has a report of
        its own in a folder of its name, and the table shows the mean over sets beside each set's.
      split: name of the split.
      report: folder of the HTML report and `metrics.json`; None: `RUN/report/<split>`, or `FILE-report/<split>`
        beside an exported file.
      json_file: another place for the metrics.
      limit: only the first so many examples.
      batch_size: over all devices; None: as in the model's config.
      generate: decode target sequences too, so that keywords are measured by both decoders.
      examples: size of the gallery.
      console: where the table goes.

    Raises:
      CheckpointError, ExportError, DatasetError: no model, another architecture, no data.
      ArgumentError: the report or `json_file` cannot be written; found before the evaluation.
    """
    console = console or terminal.console()
    first = jax.process_index() == 0
    if json_file and first:
        check_writable(pathlib.Path(json_file).absolute().parent, "give another file with --json FILE")
    if report and first:
        check_writable(report, "give another folder with --report DIR")
    opened = open_model(model, data, batch_size)
    by_name = several_sets.by_name(opened.config.data.paths)
    folder = pathlib.Path(report) if report else opened.reports / split
    options = {"limit": limit, "generate": generate, "examples": examples, "console": console}
    if len(by_name) == 1:
        return _run_one(opened, split, folder, json_file, **options)
    evaluations = {}
    for name, path in by_name.items():
        config = dataclasses.replace(opened.config, data=opened.config.data.only(path))
        if evaluations:  # what percentiles refer to, and the curves, belong to the first set
            opened = opened._replace(run=None)
        evaluations[name] = _run_one(opened._replace(config=config), split, folder / name, None, **options)
    joined = several_sets.joined(evaluations)
    if jax.process_index() == 0:
        tree = metrics_json(joined.metrics, joined.intervals, joined.baselines)
        text = json.dumps(tree | {"meta": {"model": opened.about, "data": by_name, "split": split}}, indent=2) + "\n"
        for file in (folder / "metrics.json", *([pathlib.Path(json_file)] if json_file else [])):
            write_atomically(file, text)
        for name in by_name:
            console.print(f"{name}: {several_sets.line(evaluations[name].metrics)}", soft_wrap=True, markup=False)
        console.print(f"mean over sets, and all metrics of each: {folder / 'metrics.json'}", soft_wrap=True)
    return joined


def _run_one(
    opened: Opened,
    split: str,
    folder: pathlib.Path,
    json_file: str | None,
    *,
    limit: int | None,
    generate: bool,
    examples: int,
    console: Console,
) -> CriticEvaluation:
    """Evaluates on one dataset, that of `opened.config`, and writes its report into `folder`."""
    config = opened.config
    first = jax.process_index() == 0
    if first:
        check_writable(folder, "give another folder with --report DIR")
    labels = Labels(store.open_split(config.data.paths[0], split))
    batches = eval_loader(
        config.data,
        split,
        config.model.image_size,
        opened.tokenizer,
        sharding.rounded_up(config.data.eval_batch_size, opened.evaluator.mesh),
        jax.process_index(),
        jax.process_count(),
        limit=limit,
    )
    evaluation = opened.evaluator.run(
        opened.params,
        batches,
        labels,
        generate=generate,
        mean=_mean(config),
        gallery=examples,
        progress=lambda b: track(
            b, escape(f"evaluating {split}"), console=terminal.console(stderr=True), transient=True
        ),
    )
    if first:
        notes = _notes(opened, evaluation)
        if batches.damaged:
            notes.append(f"{batches.damaged} pictures are damaged in the middle and used as the decoder repairs them")
        meta = _meta(opened, split, evaluation, len(labels))
        meta |= {"notes": "; ".join(notes)} if notes else {}
        _write(evaluation, folder, json_file, meta, opened, examples)
        if limit is None and split != config.data.train_split and opened.run is not None:
            notes += _write_quantiles(evaluation, opened, split)
        title = f"{opened.name} on {split}: {evaluation.count} of {len(labels)} examples"
        console.print(metrics_table(evaluation.metrics, evaluation.intervals, evaluation.baselines, title))
        for line in (*(f"note: {note}" for note in notes), f"report: {folder / 'index.html'}"):
            console.print(Text(names.one_line(line)), soft_wrap=True)
    return evaluation


def _notes(opened: Opened, evaluation: CriticEvaluation) -> list[str]:
    """What a reader must know besides the numbers, one line each."""
    lines = [opened.evaluator.outputs.note(), constant.note(evaluation.constant, f"all {evaluation.count} examples")]
    return [line for line in lines if line] + list(opened.signs)


def _mean(config: Config):
    """The training split's mean, for the baseline; None if the data have no training split."""
    if config.data.train_split not in store.splits(config.data.paths[0]):
        return None
    return training_mean(Labels(store.open_split(config.data.paths[0], config.data.train_split)))


def _meta(opened: Opened, split: str, evaluation: CriticEvaluation, total: int) -> dict[str, str]:
    return {
        "model": opened.about,
        "data": f"{opened.config.data.paths[0]}, split {split}, {evaluation.count} of {total} examples",
        "heatmaps": "compared at the labels' own resolution; predictions are resized to it",
        "command": shlex.join(["rahf", *sys.argv[1:]]),
        "took": f"{evaluation.seconds:.1f} s on {len(jax.devices())} x {jax.devices()[0].device_kind}",
        "versions": f"rahf {__version__}, jax {jax.__version__}",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _write_quantiles(evaluation: CriticEvaluation, opened: Opened, split: str) -> list[str]:
    """The scores' distribution on all of a split, to which the percentiles of predictions refer from now on.

    Returns:
      Why there are none, one line; empty if they are written, or cannot be computed.
    """
    scores = evaluation.scores
    # With more processes none has all of the parameters, whose hash names the model; a baseline may lack a score.
    if jax.process_count() > 1 or not np.isfinite(scores).all():
        return []
    name = provenance.run_name(opened.config)
    model = provenance.model_id(opened.config, opened.params, opened.tokenizer, name, opened.step)
    reference = f"{pathlib.PurePath(opened.config.data.paths[0]).name}, split {split}"
    quantiles = provenance.Quantiles.from_scores(scores, model, reference)
    file = opened.run / provenance.QUANTILES_FILE
    try:
        write_atomically(file, quantiles.to_json().encode())
    except OSError as error:  # a run on a read-only disk is evaluated all the same
        return [f"no quantiles were stored, so predictions get no new percentiles: {file}: {error.strerror or error}"]
    return []


def _write(
    evaluation: CriticEvaluation, folder: pathlib.Path, json_file, meta: dict[str, str], opened: Opened, examples: int
) -> None:
    curves = read_rows(opened.run / "metrics.jsonl") if opened.run else []
    write_report(
        folder,
        f"{opened.name}: {meta['data']}",
        evaluation.metrics,
        evaluation.intervals,
        evaluation.baselines,
        evaluation.examples,
        meta,
        curves,
        max_examples=examples,
        total=evaluation.count if jax.process_count() == 1 else len(evaluation.scores),
    )
    tree = metrics_json(evaluation.metrics, evaluation.intervals, evaluation.baselines) | {"meta": meta}
    text = json.dumps(tree, indent=2) + "\n"
    for file in (folder / "metrics.json", *([pathlib.Path(json_file)] if json_file else [])):
        write_atomically(file, text)
