"""The demo from beginning to end with few scenes and steps; and again, when there is nothing left to do."""

import json

import pytest

from rahf.cli import demo
from rahf.cli import main as cli


@pytest.fixture(scope="module")
def demo_folder(tiny_config, tmp_path_factory):
    """A folder in which the demo ran once."""
    folder = tmp_path_factory.mktemp("demo")
    assert cli.main(arguments(tiny_config, folder)) == 0
    return folder


def arguments(config, folder) -> list[str]:
    places = ["--workdir", str(folder / "runs/demo"), "--data", str(folder / "data/demo"), "--config", str(config)]
    return ["demo", *places, "--train-scenes", "32", "--steps", "12"]


def test_it_leaves_a_run_a_report_and_pictures(demo_folder):
    run = demo_folder / "runs/demo"
    config = json.loads((run / "config.json").read_text())
    assert config["train"]["steps"] == 12 and config["data"]["path"] == str(demo_folder / "data/demo")
    assert [p.name for p in (run / "checkpoints/best").iterdir()] == ["12"]
    page = (run / "report/test/index.html").read_text()
    assert page.count("<article") == 60  # of the 256 test scenes
    metrics = json.loads((run / "report/test/metrics.json").read_text())
    assert metrics["metrics"]["scores/overall/count"] == 256
    assert "scores/mean/plcc" in metrics["intervals"] and "scores/mean/plcc" in metrics["baselines"]
    predicted = json.loads((run / "predictions/predictions.json").read_text())
    assert len(predicted["images"]) == 4 and predicted["errors"] == []
    names = {p.name for p in (run / "predictions").glob("*.png")}
    for number in range(4):
        for kind in ("feedback", "implausibility", "misalignment"):
            assert f"scene{number}_{kind}.png" in names
    # The prompts are those of the pictures.
    truth = [json.loads(line) for line in (demo_folder / "data/demo/truth-test.jsonl").read_text().splitlines()[:4]]
    assert [image["prompt"] for image in predicted["images"]] == [line["prompt"] for line in truth]


def test_the_second_time_nothing_is_drawn_or_trained(demo_folder, tiny_config, capsys):
    drawn_at = (demo_folder / "data/demo/dataset_info.json").stat().st_mtime_ns
    rows = (demo_folder / "runs/demo/metrics.jsonl").read_text()
    assert cli.main(arguments(tiny_config, demo_folder)) == 0
    out = capsys.readouterr().out
    assert "the run is complete at step 12" in out
    run = demo_folder / "runs/demo"
    assert f"run directory  {run}" in out.splitlines()
    assert f"report         {run}/report/test/index.html" in out.splitlines()
    assert (demo_folder / "data/demo/dataset_info.json").stat().st_mtime_ns == drawn_at
    assert (run / "metrics.jsonl").read_text() == rows


def test_ctrl_c_in_training_ends_it(tiny_config, tmp_path, monkeypatch):
    from rahf import registry
    from rahf.critic.evaluation import run as evaluation_report
    from rahf.training import loop

    monkeypatch.setattr(registry, "train", lambda config: loop.Finished(3, {}, 2))
    monkeypatch.setattr(evaluation_report, "run", lambda *_, **__: pytest.fail("evaluated an unfinished run"))
    monkeypatch.setattr("data_pipelines.synthetic.prepare.prepare", lambda *_, **__: {"train": 32})
    assert cli.main(arguments(tiny_config, tmp_path)) == 130


def test_its_own_config_fits_its_data():
    """As `make demo` runs it, without options."""
    from data_pipelines.synthetic import prepare
    from rahf import config as config_lib
    from rahf.text import Tokenizer

    config = config_lib.load("configs/critic/demo.py")
    assert (config.workdir, config.data.path) == ("runs/demo", "data/demo")
    vocabulary = prepare._tokenizer(0, 4000)
    assert Tokenizer(vocabulary).vocab_size <= config.model.t5.vocab_size
    assert demo.TRAIN_SCENES >= config.data.batch_size
