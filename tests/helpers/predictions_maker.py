"""Predictions of a split whose labels are known, made without any network."""

import json
import pathlib

import numpy as np

from data_pipelines import store
from data_pipelines.loading.labels import Labels
from rahf.core.batch import HEATMAPS, SCORES
from rahf.critic.feedback import png


def labels_of(data) -> Labels:
    """Labels of the test split of a dataset."""
    return Labels(store.open_split(data, "test"))


def write_predictions(folder: pathlib.Path, labels, name="predictions.jsonl", noise=0.0, seed=0, **fields):
    """A predictions file whose predictions are the labels, more or less; what is in `fields` replaces a field."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for place in range(len(labels)):
        truth = labels[place]
        record = truth.record
        scores = np.clip(np.nan_to_num(record.scores, nan=0.5) + noise * rng.normal(size=len(SCORES)), 0, 1)
        line = {"uid": record.uid, "prompt": record.prompt, "scores": dict(zip(SCORES, map(float, scores)))}
        if record.word_labels is not None:
            flipped = rng.random(len(record.words)) < noise
            line["word_labels"] = [int(label ^ flip) for label, flip in zip(record.word_labels, flipped)]
        for kind, map_name in enumerate(HEATMAPS):
            values = truth.heatmaps[:, :, kind] / 255 + noise * rng.random(truth.heatmaps.shape[:2])
            line[map_name] = f"{name}.{place}.{map_name}.png"
            (folder / line[map_name]).write_bytes(png((np.clip(values, 0, 1) * 255).round().astype(np.uint8)))
        lines.append(line | fields)
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / name
