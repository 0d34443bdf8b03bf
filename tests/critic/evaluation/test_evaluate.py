"""Evaluation of a run: its numbers are those of the network's outputs, and everything asked for is there."""

import io
import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

import rahf
from data_pipelines import store
from rahf.cli import main as cli
from rahf.core import batch as batch_lib
from rahf.core import errors as errors_lib
from rahf.core.batch import HEATMAPS, SCORES, Prediction
from rahf.critic import families, provenance
from rahf.critic.evaluation import evaluator
from rahf.critic.evaluation import run as evaluation_report
from rahf.critic.evaluation.eval_step import Evaluated
from rahf.critic.losses import Parts
from rahf.images import load_grey
from rahf.images.resize import resize
from rahf.metrics.heatmaps import HeatmapMetrics
from rahf.metrics.keywords import KeywordMetrics
from rahf.metrics.scores import ScoreMetrics
from tests.helpers import train_maker

HEATMAP_METRICS = ("mse", "mse_empty", "cc", "kld", "sim", "nss", "nss_weighted", "nss_majority", "auc_judd")
NAMES = [
    *(f"scores/{name}/{kind}" for name in (*SCORES, "mean") for kind in ("plcc", "srcc")),
    *(f"heatmaps/{name}/{kind}" for name in HEATMAPS for kind in HEATMAP_METRICS),
    *(
        f"{decoder}/{average}{kind}"
        for decoder in ("keywords", "keywords_constrained")
        for average in ("", "macro_")
        for kind in ("precision", "recall", "f1")
    ),
]


@pytest.fixture(scope="module")
def finished_run(finished_run, tmp_path_factory):
    """A copy: evaluations write into their run directory."""
    return shutil.copytree(finished_run, tmp_path_factory.mktemp("evaluated") / "run")


@pytest.fixture(scope="module")
def evaluated(finished_run, tmp_path_factory):
    """The test split: 10 examples in batches of 8, so that the second is filled up with 6 that must not count."""
    folder = tmp_path_factory.mktemp("report")
    return evaluation_report.run(str(finished_run), split="test", report=str(folder)), folder


@pytest.fixture(scope="module", autouse=True)
def reference(evaluated, finished_run) -> str:
    """The quantiles that this evaluation stored; later ones store theirs."""
    return (finished_run / "quantiles.json").read_text()


@pytest.fixture(scope="module")
def said(finished_run, tiny_data):
    """What the same checkpoint says of the same examples, by the way that users take."""
    source = store.open_split(tiny_data, "test")
    records = [source[i] for i in range(len(source))]
    critic = rahf.load(finished_run)
    arguments = [r.image for r in records], [r.prompt for r in records]
    generated = critic.feedback(*arguments, batch_size=8, generate=True)
    return records, generated


def labels_of(feedback, by: str, slots: int = 20) -> np.ndarray:
    values = np.ones((len(feedback), slots), int)
    for row, one in enumerate(feedback):
        found = one.word_labels if by == "generation" else (one.word_probabilities <= 0.5).astype(int)
        values[row, : len(found)] = found
    return values


def test_percentiles_refer_to_the_evaluated_split(reference, said, finished_run, monkeypatch):
    """A whole split's scores become the reference of later predictions."""
    monkeypatch.setattr(
        provenance.Quantiles, "from_json", lambda _, made=provenance.Quantiles.from_json: made(reference)
    )
    quantiles = rahf.load(finished_run).provenance.quantiles
    scores = np.array([[one.scores[name] for name in SCORES] for one in said[1]])
    assert quantiles.reference == "tiny, split test" and quantiles.count == 10
    np.testing.assert_allclose(quantiles.values, np.quantile(scores, np.linspace(0, 1, 101), axis=0).T, atol=1e-4)
    # The worst of the split is at 0%, the best at 100%, and the median is in the middle.
    for rank, share in ((scores.min(0), 0), (np.median(scores, 0), 50), (scores.max(0) + 1, 100)):
        np.testing.assert_allclose(quantiles.percentiles(rank), np.full(4, share), atol=3)


def test_the_numbers_are_those_of_the_outputs(evaluated, said):
    evaluation, (records, feedback) = evaluated[0], said
    index = np.arange(10)
    scores = ScoreMetrics()
    truth = np.stack([r.scores for r in records])
    found = np.stack([[f.scores[n] for n in SCORES] for f in feedback])
    scores.update(found, truth, np.ones((10, 4), bool), index)
    heatmaps = HeatmapMetrics()
    maps = np.stack([np.stack([load_grey(r.implausibility), load_grey(r.misalignment)], -1) for r in records])
    heatmaps.update(np.stack([f.network_heatmaps for f in feedback]), maps, np.ones((10, 2), bool), index)
    expected = scores.compute() | heatmaps.compute()
    words, mask = np.ones((10, 20), int), np.zeros((10, 20), bool)
    for row, record in enumerate(records):
        words[row, : len(record.words)] = record.word_labels
        mask[row, : len(record.words)] = True
    for name, by in (("keywords", "generation"), ("keywords_constrained", "probability")):
        keywords = KeywordMetrics(name)
        keywords.update(labels_of(feedback, by), words, mask, index)
        expected |= keywords.compute()
    assert evaluation.count == 10
    for name, value in expected.items():
        assert evaluation.metrics[name] == pytest.approx(value, abs=2e-4, nan_ok=True), name
    plcc = [np.corrcoef(truth[:, k], found[:, k])[0, 1] for k in range(4)]
    assert evaluation.metrics["scores/mean/plcc"] == pytest.approx(np.mean(plcc), abs=2e-4)


def test_everything_has_its_name_interval_and_baseline(evaluated, tiny_data):
    evaluation, _ = evaluated
    for name in NAMES:
        assert name in evaluation.metrics and name in evaluation.baselines, name
        low, high = evaluation.intervals[name]
        if np.isfinite(evaluation.metrics[name]):
            assert low <= high and np.isfinite([low, high]).all(), name
    assert {f"loss/{n}" for n in ("heatmap", "score", "keyword", "total")} <= evaluation.metrics.keys()
    assert evaluation.baselines["scores/mean/plcc"] == 0.0  # a constant says nothing
    assert evaluation.baselines["keywords/recall"] == 0.0
    # The baseline's error is the distance to the mean of the training split.
    train, test = (store.open_split(tiny_data, split) for split in ("train", "test"))
    mean = np.mean([load_grey(train[i].implausibility) for i in range(48)], 0, dtype=np.float64) / 255
    truth = np.stack([load_grey(test[i].implausibility) / 255 for i in range(10)])
    error = np.square(truth - mean).mean((1, 2))
    assert evaluation.baselines["heatmaps/implausibility/mse"] == pytest.approx(error.mean(), abs=1e-4)
    assert evaluation.metrics["heatmaps/implausibility/count"] == 10
    assert evaluation.metrics["heatmaps/implausibility/count_empty"] == (truth.max((1, 2)) == 0).sum()


def test_json_and_report_are_written(evaluated, finished_run):
    evaluation, folder = evaluated
    stored = json.loads((folder / "metrics.json").read_text())
    for name, value in evaluation.metrics.items():
        assert stored["metrics"][name] == (value if np.isfinite(value) else None)
    assert stored["intervals"].keys() == evaluation.intervals.keys()
    assert stored["baselines"].keys() == evaluation.baselines.keys()
    assert stored["meta"]["model"] == "best checkpoint of step 12"
    assert "split test, 10 of 10 examples" in stored["meta"]["data"]
    page = (folder / "index.html").read_text()
    assert page.count("<article") == 10 and "http" not in page.split("<body>")[1].split("<script>")[0]
    for example in evaluation.examples:
        assert all(word in page for word in example.words)
    assert "always predicting the training mean" in page
    assert 'id="curves"' in page  # of metrics.jsonl
    assert sorted(p.name for p in folder.iterdir()) == ["index.html", "metrics.json"]


def test_a_checkpoint_is_measured_as_during_training(finished_run, tmp_path):
    """The newest checkpoint: its averaged parameters, found among the optimizer's, say what they said then."""
    newest = str(finished_run / "checkpoints/latest/12")
    evaluation = evaluation_report.run(newest, split="dev", limit=8, report=str(tmp_path))
    rows = [row for row in train_maker.rows(finished_run) if "eval/loss/total" in row and row["step"] == 12]
    assert evaluation.count == 8
    for name, value in evaluation.metrics.items():
        expected = rows[0][f"eval/{name}"]
        assert value == pytest.approx(np.nan if expected is None else expected, abs=1e-6, nan_ok=True), name
    meta = json.loads((tmp_path / "metrics.json").read_text())["meta"]
    assert meta["model"] == "latest checkpoint of step 12" and "8 of 12 examples" in meta["data"]


def resized(encoded: bytes, size: tuple[int, int]) -> bytes:
    made = io.BytesIO()
    Image.open(io.BytesIO(encoded)).resize(size, Image.Resampling.NEAREST).save(made, "PNG")
    return made.getvalue()


def test_maps_of_several_sizes_and_missing_labels(finished_run, tiny_data, said, tmp_path):
    records, feedback = said
    changed = []
    for number, record in enumerate(records):
        maps = {name: resized(getattr(record, name), (48, 40)) for name in HEATMAPS} if number % 2 else {}
        changed.append(record._replace(**maps))
    changed[4] = changed[4]._replace(
        implausibility=None, misalignment=None, scores=np.full(4, np.nan, np.float32), word_labels=None
    )
    vocabulary = (tiny_data / "tokenizer.model").read_bytes()
    store.write_dataset(tmp_path / "data", {"mixed": changed}, "test", vocabulary)
    report = str(tmp_path / "report")
    evaluation = evaluation_report.run(str(finished_run), data=str(tmp_path / "data"), split="mixed", report=report)
    errors = []
    for record, one in zip(changed, feedback):
        if record.misalignment is not None:
            truth = load_grey(record.misalignment) / 255
            errors.append(np.square(resize(one.network_heatmaps[..., 1], truth.shape) - truth).mean())
    assert evaluation.metrics["heatmaps/misalignment/mse"] == pytest.approx(np.mean(errors), abs=1e-5)
    assert evaluation.metrics["heatmaps/misalignment/count"] == len(errors) == 9
    assert evaluation.metrics["scores/overall/count"] == 9
    assert evaluation.count == 10
    assert evaluation.baselines == {}  # there is no training split to take a mean of
    assert (tmp_path / "report/index.html").read_text().count("<article") == 10


def test_the_command(finished_run, tmp_path, capsys):
    run, file = tmp_path / "run", tmp_path / "numbers" / "mine.json"
    shutil.copytree(finished_run, run)
    arguments = ["evaluate", str(run), "--limit", "3", "--no-generate", "--json", str(file), "--examples", "2"]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert f"report: {run}/report/test/index.html" in out.splitlines()
    assert "run on test: 3 of 10 examples" in out and "mean baseline" in out
    stored = json.loads(file.read_text())
    assert stored == json.loads((run / "report/test/metrics.json").read_text())
    assert stored["metrics"]["scores/overall/count"] == 3
    assert "keywords_constrained/f1" in stored["metrics"] and "keywords/f1" not in stored["metrics"]
    assert (run / "report/test/index.html").read_text().count("<article") == 2


def test_brackets_in_names_are_printed(finished_run, tmp_path, capsys):
    """Rich's markup: "[final]" would vanish, "[/" would end in a traceback after the work."""
    run = tmp_path / "p[" / "q] [final]"
    shutil.copytree(finished_run, run)
    assert cli.main(["evaluate", str(run), "--limit", "3", "--no-generate"]) == 0
    out = capsys.readouterr().out
    assert f"report: {run}/report/test/index.html" in out.splitlines() and "q] [final] on test: 3 of 10" in out


def test_a_run_on_a_read_only_disk_is_evaluated(finished_run, tmp_path, capsys, monkeypatch):
    """Its quantiles cannot be stored, which is said; what cannot be written at all is said before the work."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / "quantiles.json").unlink()
    write = evaluation_report.write_atomically

    def read_only(path, data):
        if run in pathlib.Path(path).parents:
            raise OSError(30, "Read-only file system", str(path))
        write(path, data)

    monkeypatch.setattr(evaluation_report, "write_atomically", read_only)
    assert cli.main(["evaluate", str(run), "--no-generate", "--report", str(tmp_path / "report")]) == 0
    out = capsys.readouterr().out
    assert "mean baseline" in out and "note: no quantiles were stored" in out and "Read-only file system" in out
    assert (tmp_path / "report/index.html").is_file() and not (run / "quantiles.json").exists()
    monkeypatch.setattr(evaluation_report, "open_model", lambda *_: pytest.fail("it began to work"))
    (tmp_path / "file").write_text("")
    for option in ("--report", "--json"):
        error = refused(capsys, run, option, tmp_path / "file" / "inside")
        assert f"{tmp_path / 'file'}" in error and "cannot be written to" in error and "give another" in error


def test_heads_that_never_saw_a_label_are_not_measured(finished_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    counts = json.loads((run / "label_counts.json").read_text())
    assert counts.keys() == {*families.Outputs().label_names} and min(counts.values()) > 0
    (run / "label_counts.json").write_text(json.dumps(counts | {"score/overall": 0, "keyword": 0}))
    evaluation = evaluation_report.run(str(run), limit=3, generate=False)
    assert "note: not learnt, and so not predicted: overall score, misaligned words" in capsys.readouterr().out
    assert np.isnan(evaluation.scores[:, 3]).all() and np.isfinite(evaluation.scores[:, :3]).all()
    assert not [n for n in evaluation.metrics if n.startswith(("scores/overall", "scores/mean", "keywords"))]
    assert "scores/alignment/plcc" in evaluation.metrics
    page = (run / "report/test/index.html").read_text()
    assert "not learnt, and so not predicted" in page


def refused(capsys, *arguments) -> str:
    assert cli.main(["evaluate", *map(str, arguments)]) == 1
    found = capsys.readouterr()
    assert found.err.startswith("rahf: ") and "Traceback" not in found.err
    return found.err


def test_what_cannot_be_evaluated(finished_run, tmp_path, capsys):
    assert "no such file or directory; expected a run directory" in refused(capsys, tmp_path / "absent")
    assert "has no split 'tset'; it has" in refused(capsys, finished_run, "--split", "tset")
    assert "is not there; expected a prepared dataset" in refused(capsys, finished_run, "--data", tmp_path / "absent")
    assert "limit 0 leaves no examples" in refused(capsys, finished_run, "--limit", "0")


def test_another_architecture_than_the_config_says(finished_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    config = json.loads((run / "config.json").read_text())
    config["model"]["vit"]["mlp_width"] = 48
    config["model"]["vit"]["depth"] = 2
    (run / "config.json").write_text(json.dumps(config))
    error = refused(capsys, run)
    assert "belongs to another architecture:\n" in error
    assert "vit/layer_1/" in error and ": missing, expected (" in error
    config["model"]["vit"]["depth"] = 1
    (run / "config.json").write_text(json.dumps(config))
    assert "shape (32, 64), expected (32, 48)" in refused(capsys, run)
    config["model"]["vit"]["widht"] = 32
    (run / "config.json").write_text(json.dumps(config))
    assert f"{run}/config.json.model.vit: unknown field 'widht'. Did you mean 'width'?" in refused(capsys, run)


@pytest.mark.parametrize("field, row", [("scores", 0), ("word_probabilities", 1), ("heatmaps", 1), ("keyword", 0)])
def test_outputs_that_are_not_finite_are_named(field, row):
    batch = batch_lib.fake(3)
    batch.example_mask[2] = False
    prediction = Prediction(np.zeros((3, 4, 4, 2)), np.zeros((3, 4)), np.zeros((3, 6)))
    found = Evaluated(prediction, None, Parts(*(np.zeros(3) for _ in range(4))))
    values = getattr(prediction, field, None)
    values = found.parts.keyword if values is None else values
    rows = np.flatnonzero(batch.example_mask)
    values[2] = np.nan  # filling: of no interest
    evaluator._check_finite(families.Outputs(), batch, found, rows)
    values[row] = np.inf
    with pytest.raises(errors_lib.NotFinite, match=rf"{field.replace('_', ' ')}.* of example {row} "):
        evaluator._check_finite(families.Outputs(), batch, found, rows)


def test_an_exported_file_is_evaluated(evaluated, finished_run, tiny_data, tmp_path):
    from rahf.critic.export.write import write_export

    critic = rahf.load(finished_run)
    file = write_export(critic, tmp_path / "tiny.rahf", platforms=("cpu",)).file
    data = json.loads((finished_run / "config.json").read_text())["data"]["path"]
    found = evaluation_report.run(str(file), data=data, split="test")
    expected = evaluated[0]
    assert found.count == 10 and (tmp_path / "tiny-report" / "test" / "index.html").is_file()
    assert set(expected.metrics) - set(found.metrics) == {
        name for name in expected.metrics if name.startswith(("loss/", "keywords/"))
    }
    for name, value in found.metrics.items():
        np.testing.assert_allclose(value, expected.metrics[name], atol=1e-4, err_msg=name)
    small = write_export(critic, tmp_path / "scores.rahf", platforms=("cpu",), scores_only=True).file
    with pytest.raises(ValueError, match="exported with --scores-only; evaluate needs heatmaps"):
        evaluation_report.run(str(small), data=data, split="test")
