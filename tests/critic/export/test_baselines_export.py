"""Exported baselines: the checkpoint's numbers, NaN where it has none, and CLIP's vocabulary without its library."""

import dataclasses
import functools
import json
import pathlib
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rahf
from rahf.cli import main as cli
from rahf.config import Config, DataConfig
from rahf.core.batch import SCORES, Prediction
from rahf.core.errors import ExportError
from rahf.critic import families, loading
from rahf.critic.critic import Critic
from rahf.critic.export import functions, read, write
from rahf.critic.networks import build
from rahf.critic.published import baselines
from rahf.nn import functional
from rahf.text import Tokenizer, train_tokenizer
from rahf.text import clip as text_clip
from tests.helpers import bare_reader
from tests.helpers.baseline_maker import CLIP, RESNET, clip, clip_folder
from tests.helpers.image_maker import encode, smooth

PROMPTS = ["a red star", "two blue rings", "one green star above"]


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return [smooth(40, 60, 1), smooth(32, 32, 2), smooth(20, 50, 3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    return tmp_path_factory.mktemp("baselines")


@pytest.fixture(scope="module")
def run(folder) -> pathlib.Path:
    """A published CLIP as it is imported: alignment by cosine, misalignment by its gradient."""
    return baselines.import_clip(clip_folder(folder / "hub"), folder / "clip")


@pytest.fixture(scope="module")
def checkpoint(run):
    return rahf.load(run)


@pytest.fixture(scope="module")
def exported_clip(checkpoint, folder) -> pathlib.Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "_check_outputs", lambda *_: (0.0, ()))  # the tests compare
        return write.write_export(checkpoint, folder / "clip.rahf", platforms=("cpu",)).file


def critic_of(model, tokenizer, name: str) -> Critic:
    stream = np.random.default_rng(1)
    flat = functional.flatten(functional.init(build.build(model), 0))
    noisy = {path: v + 0.1 * stream.standard_normal(v.shape, np.float32) for path, v in flat.items()}
    data = DataConfig(max_prompt_tokens=20, max_target_tokens=24, max_words=8)
    return Critic(Config(data=data, model=model), functional.unflatten(noisy), tokenizer, name, 7)


def agree(prediction: Prediction, expected: Prediction, outputs: families.Outputs) -> None:
    """The same numbers where something is predicted, and NaN in both elsewhere."""
    for values, others, mask in (
        (prediction.scores, expected.scores, outputs.score_mask),
        (prediction.heatmaps, expected.heatmaps, outputs.heatmap_mask),
    ):
        if values is None:
            continue
        values, others = np.asarray(values), np.asarray(others)
        np.testing.assert_allclose(values, others, atol=1e-5, rtol=0)
        for column, is_predicted in enumerate(mask):
            assert np.isfinite(values[..., column]).all() if is_predicted else np.isnan(values[..., column]).all()
            assert not is_predicted or np.ptp(values[..., column]) > 1e-4
    assert prediction.word_probabilities is None or np.isnan(prediction.word_probabilities).all()


def card_of(file: pathlib.Path) -> str:
    return zipfile.ZipFile(file).read("README.md").decode()


def test_resnet(folder, pictures, monkeypatch):
    monkeypatch.setattr(write, "_check_outputs", lambda *_: (0.0, ()))  # compared below
    critic = critic_of(RESNET, Tokenizer(train_tokenizer(["the network reads no text"], 320)), "resnet")
    again = rahf.load(write.write_export(critic, folder / "resnet.rahf", platforms=("cpu",)).file)
    prediction = again(pictures, PROMPTS)
    agree(prediction, critic(pictures, PROMPTS), families.outputs(RESNET))
    assert prediction.provenance == critic.provenance
    feedback = again.feedback(pictures, PROMPTS)[0]
    assert feedback.decided_by == "nothing" and set(feedback.scores) == set(SCORES)
    card = card_of(folder / "resnet.rahf")
    assert "gives four scores and two heatmaps. Scores (plausibility" in card
    assert "does not read the prompt and judges no words" in card and "7 steps" in card


def test_trained_scores_of_clip(checkpoint, folder, pictures):
    """Scores only, and compared by `export` itself, too."""
    text = dataclasses.replace(CLIP.clip.text, vocab_size=checkpoint.tokenizer.vocab_size, positions=20, eos_token_id=2)
    critic = critic_of(clip(scores="trained", text=text), checkpoint.tokenizer, "scores")
    written = write.write_export(critic, folder / "scores.rahf", scores_only=True, platforms=("cpu",))
    again = rahf.load(written.file)
    agree(again(pictures, PROMPTS), critic(pictures, PROMPTS), families.outputs(critic.config.model))
    assert written.difference <= 1e-5 and "score_out/kernel" in functional.flatten(again.params)
    card = card_of(written.file)
    assert "gives four scores. Scores (plausibility" in card and "a CLIP, a baseline that judges no words.\n" in card


def test_clip_without_transformers_and_tokenizers(exported_clip, checkpoint, pictures, tmp_path):
    """The reader has neither library; prompts, numbers and gradients are the same."""
    arrays = bare_reader.read(exported_clip, pictures[:2], PROMPTS[:2], tmp_path)
    outputs = families.outputs(checkpoint.config.model)
    assert outputs == (("alignment",), ("misalignment",), False, ())
    agree(Prediction(*(arrays[name] for name in Prediction._fields)), checkpoint(pictures[:2], PROMPTS[:2], 4), outputs)
    ids, mask = checkpoint.tokens(PROMPTS[0])
    pixels = jnp.asarray(pictures[0], jnp.float32) / 255
    gradient = jax.grad(lambda x: checkpoint.scores(x, ids, mask)[1])(pixels)
    assert np.abs(gradient).max() > 1e-4
    # That of the sum of all four: the three that are NaN add nothing to it.
    np.testing.assert_allclose(arrays["gradient"], gradient, atol=1e-6)
    card = card_of(exported_clip)
    assert "gives one score and one heatmap. Scores (alignment)" in card and "heatmaps (misalignment)" in card
    assert "(plausibility, aesthetics, overall) is NaN" in card and "rahf did not train them" in card


def test_commands_take_an_exported_clip(exported_clip, run, checkpoint, tiny_data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loading, "load", functools.cache(loading.load))
    picture = tmp_path / "picture.png"
    picture.write_bytes(encode(smooth(40, 60)))
    arguments = ["predict", str(exported_clip), str(picture), "--prompt", PROMPTS[0], "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 0
    one = json.loads((tmp_path / "out" / "predictions.json").read_text())["images"][0]
    expected = checkpoint(picture, PROMPTS[0], 4).scores[0]
    assert one["scores"]["overall"] is None and set(one["files"]) == {"feedback", "misalignment"}
    np.testing.assert_allclose(one["scores"]["alignment"], expected[1], atol=1e-5)
    (tmp_path / "list.jsonl").write_text(json.dumps({"image": "picture.png", "prompt": PROMPTS[0]}) + "\n")
    arguments = ["score", str(exported_clip), str(tmp_path / "list.jsonl"), "--out", str(tmp_path / "scored")]
    arguments += ["--batch-size", "1"]
    assert cli.main(arguments) == 0
    assert f"1 scored by {checkpoint.model_id}" in capsys.readouterr().out
    metrics = []
    for model in (exported_clip, run):
        file = tmp_path / "metrics.json"
        places = ["--json", str(file), "--report", str(tmp_path / "report")]
        assert cli.main(["evaluate", str(model), "--data", str(tiny_data), "--split", "test", *places]) == 0
        metrics.append(json.loads(file.read_text())["metrics"])
    ours, theirs = ({n: v for n, v in m.items() if not n.startswith("loss/")} for m in metrics)
    assert ours.keys() == theirs.keys() and {"scores/alignment/plcc", "heatmaps/misalignment/cc"} <= set(ours)
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, atol=1e-3, err_msg=name)


def test_a_vocabulary_that_only_its_library_can_read_is_refused_before_any_work(checkpoint, tmp_path, monkeypatch):
    tree = json.loads(checkpoint.tokenizer.model)
    tree["normalizer"]["normalizers"].pop()  # tells upper from lower case
    other = text_clip.ClipTokenizer(json.dumps(tree).encode(), "other/tokenizer.json")
    critic = Critic(checkpoint.config, checkpoint.params, other, "other", 0)
    monkeypatch.setattr(functions, "serialize_functions", lambda *_: pytest.fail("worked before it refused"))
    message = "other/tokenizer.json: it normalizes texts otherwise than CLIP .*vocab.json and merges.txt alone"
    with pytest.raises(ExportError, match=message):
        write.write_export(critic, tmp_path / "new" / "other.rahf")
    assert not list(tmp_path.iterdir())


def test_numbers_that_are_not_finite_are_refused(checkpoint, tmp_path, monkeypatch):
    """NaN stands for what a baseline does not predict; it must not hide damaged weights."""
    damaged = functional.unflatten({k: v * np.nan for k, v in functional.flatten(checkpoint.params).items()})
    critic = Critic(checkpoint.config, damaged, checkpoint.tokenizer, "damaged", 0, network=checkpoint.network)
    monkeypatch.setattr(functions, "serialize_functions", lambda *_: {"predict": b""})
    monkeypatch.setattr(read, "critic_of_archive", lambda *_: critic)  # gives the same NaN
    with pytest.raises(ExportError, match="the model's own (scores|heatmaps) are not finite; nothing was written"):
        write.write_export(critic, tmp_path / "damaged.rahf")
    assert not list(tmp_path.iterdir())


def test_a_baseline_without_all_scores_has_no_percentiles(run, tmp_path, capsys, monkeypatch):
    written = write.WrittenExport(tmp_path / "x.rahf", 1, rahf.load(run).provenance, 0.0)
    monkeypatch.setattr(write, "write_export", lambda *_, **__: written)
    write.export_run(run, tmp_path / "x.rahf")
    assert "no percentiles: this model does not predict all four scores" in capsys.readouterr().out
