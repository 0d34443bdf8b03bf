"""`rahf evaluate` of a renderer: rows whose numbers are known."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from data_pipelines.video import prepare, read
from rahf import images, registry
from rahf.cli import main as cli
from rahf.config import Config, DataConfig, MotionRendererConfig
from rahf.core.errors import ArgumentError, DatasetError
from rahf.metrics.pictures import MOST_PSNR, psnr
from rahf.motion import evaluate_renderer, features, renderer_task
from rahf.training import saved_model


class Colours:
    """In the place of a feature network: the mean difference of pixels."""

    name = "colours"

    def difference(self, one, other):
        return abs(one - other).mean((1, 2, 3))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("motion") / "drawn"
    prepare.prepare_scenes(folder, 3, dev=0, test=0.67, size=(32, 16), progress=False)
    return str(folder)


def test_rows_of_a_renderer_that_does_nothing(data, tmp_path, monkeypatch):
    """It returns the photograph, as the row of the still one; splatting along the true motion is better."""
    config = Config(workdir="runs/r", data=DataConfig(path=data), model=MotionRendererConfig())
    monkeypatch.setattr(renderer_task, "load", lambda path: lambda pictures, flow, importance: pictures)
    monkeypatch.setattr(saved_model, "find", lambda path: SimpleNamespace(run=tmp_path, config=config))
    monkeypatch.setattr(features, "load", lambda name: {"colours": Colours()}[name])
    rows = evaluate_renderer.evaluate("runs/r", features="colours")
    assert [*rows][1:] == ["softmax splatting", "average splatting", "backward warping", "the photograph, still"]
    trained, softmax, _, backward, still = (row.metrics for row in rows.values())
    assert trained == still and [*rows][0] == "trained renderer (softmax splatting)"
    assert still["pictures/psnr"] < softmax["pictures/psnr"] < MOST_PSNR
    clips = [read.clip(data, f"test:{number}") for number in range(2)]
    expected = [
        np.mean([psnr(images.load_rgb(clip.image), images.load_rgb(target)) for target in clip.targets])
        for clip in clips
    ]
    assert still["pictures/psnr"] == pytest.approx(np.mean(expected)) and still["pictures/count"] == 2
    assert still["pictures/features"] > softmax["pictures/features"] > 0 and backward["pictures/ssim"] < 1
    low, high = rows["the photograph, still"].intervals["pictures/psnr"]
    assert low == pytest.approx(min(expected)) and high == pytest.approx(max(expected))
    saved = json.loads((tmp_path / "report/test/metrics.json").read_text())
    assert saved["meta"]["features"] == "colours" and saved["meta"]["clips"] == 2

    with pytest.raises(ArgumentError, match="a renderer is evaluated on one dataset at a time, found 2"):
        evaluate_renderer.evaluate("runs/r", data=[data, data])
    with pytest.raises(ArgumentError, match="--limit: expected at least one clip, found 0"):
        evaluate_renderer.evaluate("runs/r", limit=0)


def test_a_clip_without_later_pictures(data):
    clip = read.clip(data, "test:0")._replace(times=(), targets=())
    with pytest.raises(DatasetError, match="keeps no later picture"):
        evaluate_renderer.measure([clip], {}, None)


def test_the_command_hands_its_options_over(monkeypatch):
    called = []
    monkeypatch.setattr(registry, "family_name", lambda path: "motion-renderer")
    monkeypatch.setattr(evaluate_renderer, "evaluate", lambda *path, **options: called.append((path, options)))
    assert cli.main(["evaluate", "RUN", "--features", "none", "--limit", "3"]) == 0
    ((path, options),) = called
    assert path == ("RUN",) and options["features"] is None and options["limit"] == 3
