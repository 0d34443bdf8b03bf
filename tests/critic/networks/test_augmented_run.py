"""A whole run of the augmented-prompt variant with the quarter head: trained, resumed, evaluated, used."""

import json

import jax
import numpy as np
import pytest

import rahf
from rahf.cli import main as cli
from rahf.config import from_json
from rahf.core.batch import HEATMAPS
from rahf.critic import label_prompts
from rahf.text import load_tokenizer
from tests.helpers import train_maker

FIELDS = (
    ["--model.variant", "augmented-prompt", "--model.tasks-per-example", "2"]
    + ["--model.heatmap-head.kind", "quarter", "--model.heatmap-head.up-widths", "16", "8"]
    + ["--optimizer.ema-decay", "0", "--train.log-every", "5", "--train.steps", "25", "--train.eval-every", "25"]
)


@pytest.fixture(scope="module")
def run(tiny_config, tmp_path_factory):
    """A run directory, trained to its last step."""
    folder = tmp_path_factory.mktemp("augmented") / "run"
    assert cli.main(["train", str(tiny_config), "--workdir", str(folder), *FIELDS]) == 0
    return folder


@pytest.fixture(scope="module")
def critic(run):
    return rahf.load(run)


def test_it_learns_and_the_model_knows_its_prefixes(run):
    rows = [row for row in train_maker.rows(run) if "loss/total" in row]
    for part in ("keyword", "total"):
        assert rows[-1][f"loss/{part}"] < 0.9 * rows[0][f"loss/{part}"]
    config = from_json((run / "config.json").read_text())
    assert config.model.task_ids == label_prompts.encode(load_tokenizer(run / "tokenizer.model"))
    evaluated = [row for row in train_maker.rows(run) if "eval/loss/total" in row]
    assert {"eval/keywords/f1", "eval/scores/mean/plcc", "eval/heatmaps/misalignment/mse"} <= evaluated[-1].keys()


def test_the_same_command_finds_it_complete(run, tiny_config, capsys):
    assert cli.main(["train", str(tiny_config), "--workdir", str(run), *FIELDS]) == 0
    assert "the run is complete at step 25" in capsys.readouterr().out
    assert cli.main(["train", str(tiny_config), "--workdir", str(run), *FIELDS, "--model.tasks-per-example", "3"]) == 1
    assert "model.tasks_per_example: 2 there, 3 given" in capsys.readouterr().err


def test_commands_take_it(run, tmp_path, capsys):
    assert cli.main(["evaluate", str(run), "--limit", "8", "--report", str(tmp_path / "report")]) == 0
    metrics = json.loads((tmp_path / "report/metrics.json").read_text())
    assert "keywords/f1" in json.dumps(metrics) and (tmp_path / "report/index.html").is_file()
    capsys.readouterr()


def test_the_critic_says_the_same_in_every_way(critic):
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    feedback = critic.feedback(picture, "a red star", generate=True)[0]
    assert list(feedback.words) == ["a", "red", "star"]
    ids, mask = critic.tokens("a red star")
    pixels = picture.astype(np.float32) / 255
    np.testing.assert_allclose(critic.scores(pixels, ids, mask), list(feedback.scores.values()), atol=1e-5)
    maps = np.stack([feedback.heatmaps[name] for name in HEATMAPS], -1)
    np.testing.assert_allclose(critic.heatmaps(pixels, ids, mask), maps, atol=1e-5)
    energy = lambda x: critic.scores(x, ids, mask)[3]
    value, gradient = jax.value_and_grad(energy)(pixels)
    np.testing.assert_allclose(value, feedback.scores["overall"], atol=1e-5)
    direction = np.asarray(gradient) / np.linalg.norm(gradient)
    slope = (energy(pixels + 0.02 * direction) - energy(pixels - 0.02 * direction)) / 0.04
    np.testing.assert_allclose(slope, np.linalg.norm(gradient), rtol=0.05)
