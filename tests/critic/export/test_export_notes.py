"""What an export replaces, takes along from the run, and says of the model."""

import functools
import json
import shutil
import zipfile

import jax
import numpy as np
import pytest

import rahf
from rahf.cli import main as cli
from rahf.core.batch import Prediction
from rahf.core.errors import CheckpointError, ExportError, NotPredicted
from rahf.critic.export import read, write
from rahf.critic.provenance import Quantiles
from rahf.training import label_counts
from rahf.training.checkpoint import Checkpointer
from tests.helpers.image_maker import smooth


def test_difference_is_checked_before_anything_is_written(checkpoint, folder, monkeypatch):
    taken = folder / "taken.rahf"
    taken.write_bytes(b"before")

    class Lying:
        def __call__(self, *_):
            return Prediction(None, np.zeros((3, 4), np.float32), None)

    monkeypatch.setattr(read, "critic_of_archive", lambda *_: Lying())
    with pytest.raises(ExportError, match="other numbers than the model .*nothing was written"):
        write.write_export(checkpoint, taken, scores_only=True, platforms=("cpu",), force=True)
    with pytest.raises(ExportError, match=r"exists and is no export, so it is left alone; .*--force \(force=True\)"):
        write.write_export(checkpoint, taken, scores_only=True, platforms=("cpu",))
    assert taken.read_bytes() == b"before"
    assert not [p for p in folder.iterdir() if p.name.startswith(".taken")]


def test_only_an_export_is_replaced(checkpoint, small, run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(write, "_check_outputs", lambda *_: (0.0, ()))  # tested elsewhere
    for name, words in (("config.json", "exists and is no export"), ("notes.txt", "exists and is no export")):
        (tmp_path / name).write_text("{}")
        assert cli.main(["export", str(run), str(tmp_path / name)]) == 1
        assert words in capsys.readouterr().err and (tmp_path / name).read_text() == "{}"
    (tmp_path / "there").mkdir()
    for name in ("newdir/", "there", "there/"):
        assert cli.main(["export", str(run), f"{tmp_path}/{name}"]) == 1
        assert "is a folder; give the name of a file to write, such as" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "notes.txt", "there"]
    (tmp_path / "cut.rahf").write_bytes(small.read_bytes()[:1000])  # of an export that was interrupted in copying
    for file in (small, tmp_path / "cut.rahf"):
        write.check_replaceable(file, force=False)
    write.check_replaceable(tmp_path / "notes.txt", force=True)
    write.check_replaceable(tmp_path / "new.rahf", force=False)


def test_a_damaged_report_does_not_stop_an_export(checkpoint, tmp_path):
    """Odd values in `metrics.json` are left out of the card."""
    metrics = {
        "metrics": {"scores/overall/plcc": 10**400, "keywords/f1": 0.5, "scores/overall/srcc": "x"},
        "intervals": {"keywords/f1": [0.4, 10**400], "scores/overall/srcc": 3},
        "meta": {"model": f"best checkpoint of step {checkpoint.step}", "data": "\x1b[2Jdemo\nsplit test"},
    }
    (tmp_path / "report" / "test").mkdir(parents=True)
    (tmp_path / "config.json").write_text("{}")
    for text, expected in (
        (json.dumps(metrics), None),
        (json.dumps(metrics | {"intervals": {"keywords/f1": [0.4, 10**400]}}), {"keywords/f1": 0.5}),
        ("[" * 100_000, None),
        (json.dumps({"metrics": 3, "meta": metrics["meta"]}), None),
    ):
        (tmp_path / "report" / "test" / "metrics.json").write_text(text)
        metrics_of_card = write._newest_metrics(tmp_path, checkpoint)
        assert (metrics_of_card and metrics_of_card["metrics"]) == expected
        if metrics_of_card:
            assert metrics_of_card["intervals"] == {} and metrics_of_card["meta"]["data"].isprintable()


def test_quantiles_travel_with_the_model(run, checkpoint, tmp_path, pictures, monkeypatch):
    monkeypatch.setattr(write, "_check_outputs", lambda *_: (0.0, ()))  # tested elsewhere
    copied = shutil.copytree(run, tmp_path / "small")
    scores = np.random.default_rng(0).random((50, 4))
    quantiles = Quantiles.from_scores(scores, checkpoint.model_id, "fifty pictures")
    (copied / "quantiles.json").write_text(quantiles.to_json())
    critic = rahf.load(copied)
    assert critic.provenance.quantiles == quantiles
    written = write.write_export(
        critic, tmp_path / "with.rahf", scores_only=True, platforms=("cpu",), weight_license="MIT"
    )
    again = rahf.load(written.file)
    assert again.provenance.quantiles == quantiles and again.provenance.weight_license == "MIT"
    prediction = again(pictures[0], "a cat")
    np.testing.assert_allclose(prediction.percentiles, quantiles.percentiles(np.asarray(prediction.scores)))
    assert "fifty pictures" in zipfile.ZipFile(written.file).read("README.md").decode()
    (copied / "quantiles.json").write_text(quantiles.to_json().replace(checkpoint.model_id, "another"))
    assert rahf.load(copied).provenance.quantiles is None


def test_what_has_not_been_learnt_is_exported_as_such(run, tmp_path, capsys, monkeypatch):
    """A run that only saw plausibility: the file says so, and answers nothing else."""
    copied = shutil.copytree(run, tmp_path / "thumbs")
    names = ("heatmap/implausibility", "heatmap/misalignment", "score/alignment", "score/aesthetics", "score/overall")
    counts = dict.fromkeys([*names, "keyword"], 0) | {"score/plausibility": 40}
    label_counts.write(copied, counts)
    options = functools.partial(write.write_export, platforms=("cpu",))
    monkeypatch.setattr(write, "write_export", lambda critic, file, **_: options(critic, file, scores_only=True))
    assert cli.main(["export", str(copied), str(tmp_path / "thumbs.rahf")]) == 0
    assert "note: not learnt, and so not predicted: implausibility heatmap" in capsys.readouterr().out
    critic = rahf.load(tmp_path / "thumbs.rahf")
    assert critic.outputs == rahf.load(copied).outputs and critic.outputs.scores == ("plausibility",)
    scores = critic(smooth(32, 32), "a cat").scores[0]
    assert np.isfinite(scores[0]) and np.isnan(scores[1:]).all()
    with pytest.raises(NotPredicted, match="no example that it was trained on had such a label"):
        critic.score(smooth(32, 32), "a cat", "overall")
    card = zipfile.ZipFile(tmp_path / "thumbs.rahf").read("README.md").decode()
    assert "Not learnt, and so not predicted" in card
    (copied / "label_counts.json").write_text('{"score/overall": -1}')
    with pytest.raises(CheckpointError, match="label_counts.json: damaged"):
        rahf.load(copied)


def test_dead_models_are_said_at_the_export(run, tmp_path, capsys, monkeypatch):
    copied = shutil.copytree(run, tmp_path / "dead", ignore=shutil.ignore_patterns("checkpoints"))
    params = jax.tree.map(np.asarray, rahf.load(run).params)
    for name, part in params.items():
        if name.startswith("score_overall"):
            part["out"]["kernel"] = np.zeros_like(part["out"]["kernel"])
    saver = Checkpointer(copied, keep=1)
    saver.save_best(3, params, {})
    saver.close()
    config = json.loads((copied / "config.json").read_text())
    config["optimizer"]["learning_rate"] = 0.0
    (copied / "config.json").write_text(json.dumps(config))
    options = functools.partial(write.write_export, platforms=("cpu",))
    monkeypatch.setattr(write, "write_export", lambda critic, file, **_: options(critic, file, scores_only=True))
    assert cli.main(["export", str(copied), str(tmp_path / "dead.rahf")]) == 0
    out = capsys.readouterr().out
    assert "note: dead: optimizer.learning_rate is 0, so the weights are those that the run began with" in out
    assert "note: dead: overall score (0.5000): the same for 3 different pictures" in out
    assert "plausibility score (" not in out
