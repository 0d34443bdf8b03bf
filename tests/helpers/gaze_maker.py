"""Small pictures with a bright spot that everybody looks at, as a dataset; a saliency model of a few weights."""

import dataclasses
import json
import pathlib

import numpy as np
from PIL import Image

from data_pipelines.gaze import prepare
from rahf.config import Config, ConvNextConfig, DataConfig, OptimizerConfig, SaliencyConfig, TrainConfig

MODEL = SaliencyConfig(
    image_height=16,
    image_width=32,
    tower="convnext",
    convnext=ConvNextConfig(patch_size=4, widths=(4, 8), depths=(1, 1)),
    widths=(6, 4),
    blocks=1,
    mirrored=True,
    smoothing=0.5,
)


def make(folder: pathlib.Path, pictures: int = 8) -> pathlib.Path:
    """Writes the dataset; the first three quarters are `train`. Returns its folder."""
    rng, lines = np.random.default_rng(0), []
    (folder / "images").mkdir(parents=True)
    for number in range(pictures):
        pixels = rng.integers(0, 60, (24, 40, 3), np.uint8)
        row, column = int(rng.integers(4, 20)), int(rng.integers(4, 36))
        pixels[row - 3 : row + 3, column - 3 : column + 3] = 250
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        for viewer in range(3):
            x, y = np.clip(rng.normal((column, row), 1.0), 0, (40, 24))
            lines.append({"image": f"{number}.png", "x": float(x), "y": float(y), "viewer": viewer, "duration": 200})
    (folder / "fixations.json").write_text(json.dumps(lines))
    prepare.prepare(folder, folder / "data", sigma=3.0, dev=0.2, test=0.2, progress=False)
    return folder / "data"


def config(data: pathlib.Path, workdir: pathlib.Path, **train) -> Config:
    """A run of two steps."""
    return Config(
        workdir=str(workdir),
        data=DataConfig(path=str(data), batch_size=2, eval_batch_size=2, eval_split="train", augment=None),
        model=MODEL,
        optimizer=OptimizerConfig(learning_rate=1e-2, schedule="constant", warmup_steps=1, trainable=("level_*",)),
        train=dataclasses.replace(
            TrainConfig(steps=2, eval_every=0, eval_examples=3, checkpoint_every=2, best_metric="saliency/cc"), **train
        ),
    )
