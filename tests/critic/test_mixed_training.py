"""Three data sets with different labels train one critic, and are evaluated each for itself."""

import json
import math

import pytest

from data_pipelines.prepare.dataset_source import open_source
from data_pipelines.rapidata.prepare import prepare as prepare_rapidata
from data_pipelines.regions.prepare import prepare as prepare_regions
from rahf.cli import main as cli
from tests.helpers.feedback_maker import picture
from tests.helpers.shards_maker import rapidata_row, write_rapidata


@pytest.fixture(scope="module")
def sets(tmp_path_factory, tiny_data):
    """Everything; soft words and no overall score; maps alone, and no split to evaluate."""
    folder = tmp_path_factory.mktemp("sets")
    write_rapidata(folder / "shards/train-0.parquet", [rapidata_row(n) for n in range(16)])
    prepare_rapidata(open_source(None, folder / "shards"), folder / "soft", dev=0.3, test=0, progress=False)
    images = [{"id": n, "file_name": f"{n}.png", "prompt": "a cat", "split": "train"} for n in range(3)]
    for image in images:
        picture(folder / "pictures" / image["file_name"])
    (folder / "coco.json").write_text(
        json.dumps({"images": images, "annotations": [{"image_id": 1, "bbox": [5, 5, 20, 10]}]})
    )
    prepare_regions(folder / "coco.json", folder / "pictures", folder / "marked", progress=False)
    return [str(tiny_data), str(folder / "soft"), str(folder / "marked")]


def test_several_sets_train_and_are_evaluated(sets, tiny_config, tmp_path, capsys):
    run = tmp_path / "run"
    options = ["--train.steps", "2", "--train.eval-every", "2", "--train.log-every", "1", "--workdir", str(run)]
    best = ["--train.best-metric", "sets/soft/loss/keyword", "--train.best-mode", "min"]
    mix = ["--data.path", *sets, "--data.mix", "2", "1", "1"]
    assert cli.main(["train", str(tiny_config), *options, *mix, *best]) == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluated = next(line for line in lines if any("sets/" in name for name in line))
    named = {name.split("sets/")[1].split("/")[0] for name in evaluated if "sets/" in name}
    assert named == {"tiny", "soft"}  # the third has no split dev
    losses = [value for line in lines for name, value in line.items() if "loss" in name and value is not None]
    assert losses and all(math.isfinite(value) for value in losses)
    config = json.loads((run / "config.json").read_text())
    assert config["data"]["path"] == sets and config["data"]["mix"] == [2.0, 1.0, 1.0]
    out = tmp_path / "report"
    assert (
        cli.main(["evaluate", str(run), "--data", *sets[:2], "--split", "dev", "--no-generate", "--report", str(out)])
        == 0
    )
    metrics = json.loads((out / "metrics.json").read_text())["metrics"]
    one, two = (metrics[f"sets/{name}/heatmaps/implausibility/mse"] for name in ("tiny", "soft"))
    assert metrics["heatmaps/implausibility/mse"] == pytest.approx((one + two) / 2)
    for name in ("tiny", "soft"):
        assert (out / name / "index.html").exists()
    assert "soft: " in capsys.readouterr().out
    options[-1] = str(tmp_path / "other")
    assert cli.main(["train", str(tiny_config), *options, "--data.path", *sets, "--data.mix", "1"]) != 0
    assert "data.mix: expected 3 numbers" in capsys.readouterr().err
