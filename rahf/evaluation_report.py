"""The work behind `rahf evaluate`: a model on a split, shown as terminal table, JSON and HTML report."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import pathlib
import shlex
import sys

import jax
from rich.console import Console
from rich.progress import track

import rahf
from data_pipelines import store
from data_pipelines.labelled import Labels, training_mean
from data_pipelines.loader import eval_loader
from rahf import config as config_lib
from rahf.config import Config
from rahf.evaluate import Evaluation, Evaluator
from rahf.report import metrics_json, metrics_table, write_report
from rahf.text import Tokenizer
from rahf.train import checkpoint, sharding
from rahf.train import state as state_lib
from rahf.train.progress import read_rows


def run(
    model: str,
    *,
    data: str | None = None,
    split: str = "test",
    report: str | None = None,
    json_file: str | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    generate: bool = True,
    examples: int = 60,
    console: Console | None = None,
) -> Evaluation:
    """Evaluates a model on a split and writes what was found.

    Args:
      model: run directory (best checkpoint, else the newest) or checkpoint directory.
      data: prepared dataset; None: the one that the model was trained on.
      split: name of the split.
      report: folder of the HTML report and `metrics.json`; None: `RUN/report/<split>`.
      json_file: another place for the metrics.
      limit: only the first so many examples.
      batch_size: over all devices; None: as in the model's config.
      generate: decode target sequences too, so that keywords are measured by both decoders.
      examples: size of the gallery.
      console: where the table goes.

    Raises:
      CheckpointError, DatasetError: no model, another architecture, no data.
    """
    console = console or Console(highlight=False)
    run_folder, state_folder = checkpoint.find(model)
    config = config_lib.from_json((run_folder / "config.json").read_text(), where=str(run_folder / "config.json"))
    config = _placed(config, data, batch_size)
    tokenizer = Tokenizer.load(run_folder / "tokenizer.model")
    labels = Labels(store.open_split(config.data.path, split))
    batches = eval_loader(
        config.data, split, config.model.image_size, tokenizer, config.data.eval_batch_size,
        jax.process_index(), jax.process_count(), limit=limit,
    )  # fmt: skip
    made = state_lib.setup(config)
    params = checkpoint.load_params(state_folder, made.shapes.params)
    evaluation = Evaluator(made.graphdef, config, tokenizer, made.mesh).run(
        params,
        batches,
        labels,
        generate=generate,
        mean=_mean(config),
        gallery=True,
        progress=lambda b: track(b, f"evaluating {split}", console=Console(stderr=True), transient=True),
    )
    if jax.process_index() == 0:
        folder = pathlib.Path(report) if report else run_folder / "report" / split
        meta = _meta(config, state_folder, split, evaluation, len(labels))
        _write(evaluation, folder, json_file, meta, run_folder, examples)
        title = f"{run_folder.name} on {split}: {evaluation.count} of {len(labels)} examples"
        console.print(metrics_table(evaluation.metrics, evaluation.intervals, evaluation.baselines, title))
        console.print(f"report: {folder / 'index.html'}", soft_wrap=True)
    return evaluation


def _placed(config: Config, data: str | None, batch_size: int | None) -> Config:
    changes = {"path": data} if data else {}
    if batch_size:
        changes["eval_batch_size"] = batch_size
    # One process with one device evaluates what was trained on many.
    mesh = sharding.fitting(config.mesh, len(jax.devices()))
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes), mesh=mesh)


def _mean(config: Config):
    """The training split's mean, for the baseline; None if the data have no training split."""
    if config.data.train_split not in store.splits(config.data.path):
        return None
    return training_mean(Labels(store.open_split(config.data.path, config.data.train_split)))


def _meta(config: Config, state_folder: pathlib.Path, split: str, evaluation: Evaluation, total: int) -> dict[str, str]:
    return {
        "model": f"{state_folder.parent.parent.name} checkpoint of step {state_folder.parent.name}",
        "data": f"{config.data.path}, split {split}, {evaluation.count} of {total} examples",
        "heatmaps": "compared at the labels' own resolution; predictions are resized to it",
        "command": shlex.join(["rahf", *sys.argv[1:]]),
        "took": f"{evaluation.seconds:.1f} s on {len(jax.devices())} x {jax.devices()[0].device_kind}",
        "versions": f"rahf {rahf.__version__}, jax {jax.__version__}",
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _write(evaluation: Evaluation, folder: pathlib.Path, json_file, meta: dict[str, str], run_folder, examples: int):
    curves = read_rows(run_folder / "metrics.jsonl")
    write_report(
        folder,
        f"{run_folder.name}: {meta['data']}",
        evaluation.metrics,
        evaluation.intervals,
        evaluation.baselines,
        evaluation.examples,
        meta,
        curves,
        max_examples=examples,
    )
    found = metrics_json(evaluation.metrics, evaluation.intervals, evaluation.baselines) | {"meta": meta}
    text = json.dumps(found, indent=2) + "\n"
    for file in (folder / "metrics.json", *([pathlib.Path(json_file)] if json_file else [])):
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f".{file.name}.{os.getpid()}")
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, file)
