"""Baselines through the same commands as the paper's network: train, resume, evaluate, load."""

import json
import re

import numpy as np
import pytest

import rahf
from rahf.cli import main as cli
from rahf.critic.towers import load_backbone
from rahf.nn import functional
from tests.helpers import train_maker
from tests.helpers.baseline_maker import clip_folder, resnet_folder

RESNET = """
from rahf.config import *

def config():
    return Config(
        workdir="runs/tiny",
        data=DataConfig(path={data!r}, batch_size=48, eval_batch_size=8, max_words=20, augment=None),
        model=ResNetBaselineConfig(image_size=32, resnet=ResNetConfig(8, (16, 32), (1, 1)),
            heatmap_head=HeatmapHeadConfig(conv_widths=(8,), up_widths=(8,)),
            score_head=ScoreHeadConfig(conv_widths=(8,), pool=2, dense_widths=(8,)),
            image_mean=(0.485, 0.456, 0.406), image_std=(0.229, 0.224, 0.225),
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2, schedule="constant"),
        train=TrainConfig(steps=20, log_every=1, eval_every=0, eval_examples=8, checkpoint_every=20),
    )
"""

CLIP = """
from rahf.config import *
from rahf.critic.published.baselines import clip_model
from rahf.pretrained.clip import published_clip

def config():
    model = clip_model(published_clip({clip!r}), scores="trained", dense_widths=(16,))
    return Config(
        workdir="runs/tiny",
        data=DataConfig(
            path={data!r}, batch_size=8, eval_batch_size=8, max_prompt_tokens=20, max_words=20,
            tokenizer="start", augment=None,
        ),
        model=model,
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=2, schedule="constant"),
        start=StartConfig(vision={clip!r}),
        train=TrainConfig(steps=16, log_every=4, eval_every=0, eval_examples=8, checkpoint_every=16),
    )
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    hub = tmp_path_factory.mktemp("hub")
    return resnet_folder(hub / "resnet"), clip_folder(hub / "clip")


def trained(tmp_path, text, *arguments):
    """Loss by step and the run directory of a config."""
    file = tmp_path / "config.py"
    file.write_text(text)
    run = tmp_path / "run"
    assert cli.main(["train", str(file), "--workdir", str(run), *arguments]) == 0
    return [row["loss/total"] for row in train_maker.rows(run) if "loss/total" in row], run


def metrics_of(run, tmp_path):
    file = tmp_path / "metrics.json"
    arguments = ["--split", "test", "--json", str(file), "--report", str(tmp_path / "report")]
    assert cli.main(["evaluate", str(run), *arguments]) == 0
    return json.loads(file.read_text())["metrics"]


def test_resnet(folders, tiny_data, tmp_path):
    losses, run = trained(tmp_path, RESNET.format(data=str(tiny_data)), "--start.vision", str(folders[0]))
    assert losses[-1] < 0.8 * losses[0]  # a batch is the whole split, so they are of the same pictures
    record = json.loads((run / "start.json").read_text())
    assert record["vision"]["parts"] == ["resnet"] and all(not p.startswith("resnet/") for p in record["random"])
    metrics = metrics_of(run, tmp_path)
    assert np.isfinite(metrics["scores/mean/plcc"]) and np.isfinite(metrics["heatmaps/misalignment/mse"])
    assert not any(name.startswith("keywords") for name in metrics) and "loss/keyword" not in metrics
    prediction = rahf.load(run)(np.zeros((32, 32, 3), np.uint8), "a red star")
    assert np.isfinite(prediction.heatmaps).all() and np.isnan(prediction.word_probabilities).all()


def test_clip_fine_tuned(folders, tiny_data, tmp_path, capsys):
    losses, run = trained(tmp_path, CLIP.format(data=str(tiny_data), clip=str(folders[1])))
    assert losses[-1] < 0.8 * losses[0]
    critic = rahf.load(run)
    begun = functional.flatten(load_backbone(critic.config.model, folders[1])[0])
    ended = functional.flatten(critic.params)
    moved = [path for path, value in begun.items() if not np.array_equal(ended[path], value)]
    assert any(path.startswith("vit/") for path in moved) and any(path.startswith("text/") for path in moved)
    metrics = metrics_of(run, tmp_path)
    assert {n.split("/")[0] for n in metrics} == {"scores", "loss"} and np.isfinite(metrics["scores/mean/srcc"])
    scores = critic([np.zeros((32, 32, 3), np.uint8)] * 2, ["a red star", "one blue ring"]).scores
    assert np.isfinite(scores).all() and np.ptp(scores, 0).max() > 0
    # It goes on from its own directory alone.
    file = tmp_path / "config.py"
    assert cli.main(["train", str(file), "--workdir", str(run), "--train.steps", "17"]) == 0
    assert "resuming at step 16" in capsys.readouterr().out
    # What it cannot measure cannot choose its best step.
    capsys.readouterr()
    arguments = ["--workdir", str(tmp_path / "other"), "--train.best-metric", "keywords/f1"]
    assert cli.main(["train", str(file), *arguments]) == 1
    assert "no metric 'keywords/f1' of a clip model" in capsys.readouterr().err
    assert cli.main(["train", str(file), "--workdir", str(tmp_path / "other"), "--data.tokenizer", "dataset"]) == 1
    assert re.search(r"has \d+ pieces, model.clip.text.vocab_size is only 541", capsys.readouterr().err)
