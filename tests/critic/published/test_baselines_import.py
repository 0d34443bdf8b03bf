"""Published CLIP, PickScore and ResNet become model directories; what does not fit is refused by name."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import rahf
from rahf.cli import main as cli
from rahf.config import from_json
from rahf.core.batch import SCORES
from rahf.core.errors import NotPredicted, PretrainedError
from rahf.critic import families
from rahf.critic.published import baselines
from rahf.pretrained.clip import published_clip_tokenizer
from rahf.pretrained.resnet import MEAN, load_resnet, published_resnet
from rahf.training import label_counts
from tests.helpers.baseline_maker import clip_folder, resnet_folder, save_vocabulary

PROMPT = "two red stars above a blue ring"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return clip_folder(tmp_path_factory.mktemp("hub") / "clip")


@pytest.fixture(scope="module")
def imported(published, tmp_path_factory):
    """The model directory of `rahf import clip`."""
    out = tmp_path_factory.mktemp("models") / "clip"
    assert cli.main(["import", "clip", str(published), str(out), "--license", "MIT"]) == 0
    return out


def changed(published, folder, **tensors):
    """A copy of the checkpoint with other tensors; None removes one."""
    folder.mkdir()
    for file in published.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    state = load_file(folder / "model.safetensors") | {n.replace("__", "."): v for n, v in tensors.items()}
    save_file({n: v for n, v in state.items() if v is not None}, folder / "model.safetensors")
    return folder


def test_clip_becomes_a_model(imported, published, tmp_path, capsys):
    record = json.loads((imported / "model.json").read_text())
    assert record["license"] == "MIT" and record["format"] == "clip" and record["source"] == str(published)
    assert list(record["sha256"]) == ["model.safetensors"] and len(record["sha256"]["model.safetensors"]) == 64
    critic = rahf.load(imported)
    assert critic.config.data.max_prompt_tokens == 20
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    prediction = critic([image, image[::-1]], PROMPT)
    assert np.isfinite(prediction.scores[:, 1]).all() and np.isnan(prediction.scores[:, [0, 2, 3]]).all()
    assert np.isnan(prediction.heatmaps[..., 0]).all() and np.isfinite(prediction.heatmaps[..., 1]).all()
    assert prediction.heatmaps[..., 1].max() == pytest.approx(1, abs=1e-4)
    other = critic([image], "one green star")
    assert abs(other.scores[0, 1] - prediction.scores[0, 1]) > 1e-5


def test_predicting_with_what_is_not_predicted_left_out(imported, tmp_path, capsys):
    from PIL import Image

    picture = tmp_path / "scene.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(picture)
    out = tmp_path / "out"
    arguments = ["predict", str(imported), str(picture), "--prompt", PROMPT, "--out", str(out)]
    assert cli.main([*arguments, "--generate"]) == 1
    assert "this model does not judge the words of a prompt; leave generate out" in capsys.readouterr().err
    assert cli.main(arguments) == 0
    assert sorted(p.name for p in out.iterdir()) == [
        "predictions.json", "scene_feedback.png", "scene_misalignment.png"
    ]  # fmt: skip
    record = json.loads((out / "predictions.json").read_text())["images"][0]
    assert record["scores"]["plausibility"] is None and 0 < record["scores"]["alignment"] < 1
    assert record["heatmaps"]["implausibility"] is None and record["heatmaps"]["misalignment"]["max"] > 0.99
    assert record["words_decided_by"] == "nothing" and record["misaligned_words"] is None
    assert [word["probability"] for word in record["words"]] == [None] * 7
    assert sorted(record["files"]) == ["feedback", "misalignment"]
    printed = capsys.readouterr().out
    assert "misalignment:" in printed and "implausibility:" not in printed and "nan" not in printed


def test_evaluating_measures_only_what_is_predicted(imported, tiny_data, tmp_path, capsys):
    file = tmp_path / "metrics.json"
    arguments = ["evaluate", str(imported), "--data", str(tiny_data), "--split", "dev", "--limit", "8"]
    assert cli.main([*arguments, "--batch-size", "4", "--json", str(file), "--report", str(tmp_path / "report")]) == 0
    record = json.loads(file.read_text())
    for part in ("metrics", "intervals", "baselines"):
        names = set(record[part])
        assert {"scores/alignment/plcc", "heatmaps/misalignment/auc_judd"} <= names
        measured = [n for n in names if not n.startswith("loss/")]
        assert all(
            n.startswith(("scores/alignment/", "heatmaps/misalignment/", "regions/misalignment/")) for n in measured
        ), part
    assert {n for n in record["metrics"] if n.startswith("loss/")} == {"loss/heatmap", "loss/score", "loss/total"}
    assert record["metrics"]["scores/alignment/count"] == 8 and np.isfinite(record["metrics"]["loss/total"])
    page = (tmp_path / "report" / "index.html").read_text()
    assert page.count("not predicted") == 2 * 8 and ">nan<" not in page
    assert "Misaligned words" not in capsys.readouterr().out


def test_pickscore_gives_one_number_for_all_scores(published, tmp_path):
    out = tmp_path / "pickscore"
    assert cli.main(["import", "pickscore", str(published), str(out)]) == 0
    record = json.loads((out / "model.json").read_text())
    assert record["format"] == "pickscore" and record["license"] == "unknown"
    model = from_json((out / "config.json").read_text()).model
    assert model.clip.cosine_scores == SCORES and model.clip.heatmap == "none"
    prediction = rahf.load(out)(np.zeros((32, 32, 3), np.uint8), PROMPT)
    assert np.isfinite(prediction.scores).all() and np.ptp(prediction.scores) == 0
    assert np.isnan(prediction.heatmaps).all()


def test_resnet_becomes_a_model_to_train_from(tmp_path, capsys):
    folder = resnet_folder(tmp_path / "resnet")
    small = tmp_path / "small.py"
    small.write_text(
        "from rahf.config import *\n"
        "def config():\n"
        "    return Config(model=ResNetBaselineConfig(image_size=32,\n"
        "        heatmap_head=HeatmapHeadConfig(conv_widths=(8,), up_widths=(8,)),\n"
        "        score_head=ScoreHeadConfig(conv_widths=(8,), dense_widths=(8,))))\n"
    )
    out = baselines.import_resnet(folder, tmp_path / "out", config=str(small))
    record = json.loads((out / "model.json").read_text())
    assert record["untrained"] == "heatmap and score heads" and record["format"] == "resnet"
    critic = rahf.load(out)
    assert critic.config.model.image_mean == MEAN
    expected = load_resnet(folder, critic.config.model.resnet)
    np.testing.assert_array_equal(critic.params["resnet"]["stem"]["scale"], expected["stem"]["scale"])
    picture = np.zeros((32, 32, 3), np.uint8)
    prediction = critic(picture, "a prompt that is not read")  # random heads say nothing
    assert np.isnan(prediction.scores).all() and np.isnan(prediction.heatmaps).all()
    assert critic.outputs.scores == critic.outputs.heatmaps == () and "not learnt" in repr(critic)
    with pytest.raises(NotPredicted, match="it predicts no score at all"):
        critic.score(picture, "a cat")
    Image.fromarray(picture).save(tmp_path / "p.png")
    command = ["mask", str(out), str(tmp_path / "p.png"), "--prompt", "a", "--out", str(tmp_path / "m.png")]
    assert cli.main(command) == 1
    assert "it predicts no heatmap at all" in capsys.readouterr().err and not (tmp_path / "m.png").exists()
    assert label_counts.read(out) == dict.fromkeys(families.outputs(critic.config.model).label_names, 0)


def test_batch_normalization_becomes_scale_and_bias(tmp_path):
    folder = resnet_folder(tmp_path / "resnet")
    state = load_file(folder / "model.safetensors")
    layer = load_resnet(folder, published_resnet(folder).resnet)["stage_1_0"]["conv3"]
    name = "resnet.encoder.stages.1.layers.0.layer.2.normalization."
    weight, bias, mean, variance = (state[name + n] for n in ("weight", "bias", "running_mean", "running_var"))
    x = np.random.default_rng(0).standard_normal((7, 32))
    expected = (x - mean) / np.sqrt(variance + 1e-5) * weight + bias
    np.testing.assert_allclose(x * layer["scale"] + layer["bias"], expected, rtol=2e-5, atol=1e-4)


@pytest.mark.parametrize(
    "tensors, message",
    [
        ({"logit_scale": None}, r"logit_scale: missing, expected shape \(\)"),
        ({"visual_projection__weight": np.zeros((12, 15), np.float32)}, r"visual_projection.weight: shape \(12, 15\)"),
        ({"text_model__final_layer_norm__bias": np.full(16, np.nan, np.float32)}, "final_layer_norm.bias: 16 of 16"),
        ({"extra__weight": np.zeros(3, np.float32)}, "extra.weight: not part of this network"),
        ({"vision_model__pre_layrnorm__weight": None}, "vision_model.pre_layrnorm.weight: missing"),
    ],
)
def test_clip_tensors_are_checked_by_name(published, tmp_path, tensors, message):
    folder = changed(published, tmp_path / "changed", **tensors)
    with pytest.raises(PretrainedError, match=message):
        baselines.import_clip(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_vocabulary_of_another_clip(published, tmp_path):
    file = tmp_path / "other" / "vocab.json"
    size = save_vocabulary(file.parent)
    ids = json.loads(file.read_text())
    file.write_text(json.dumps({**ids, "more</w>": size}))
    with pytest.raises(PretrainedError, match=rf"has {size + 1} pieces, model.clip.text.vocab_size is only {size}"):
        baselines.import_clip(published, tmp_path / "out", tokenizer=file.parent)
    with pytest.raises(PretrainedError, match="no vocabulary; expected tokenizer.json, or vocab.json and merges.txt"):
        published_clip_tokenizer(tmp_path)


def test_families_are_not_mixed_up(published, tmp_path):
    folder = resnet_folder(tmp_path / "resnet")
    with pytest.raises(PretrainedError, match="model_type is 'resnet', expected 'clip'"):
        baselines.import_clip(folder, tmp_path / "out")
    with pytest.raises(PretrainedError, match="model_type is 'clip', expected 'resnet'"):
        baselines.import_resnet(published, tmp_path / "out")
    tree = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(tree | {"layer_type": "basic"}))
    with pytest.raises(PretrainedError, match="layer_type is 'basic', expected 'bottleneck'"):
        published_resnet(folder)


def test_torchvision_names_of_another_network(tmp_path):
    file = tmp_path / "resnet18.safetensors"
    save_file({"conv1.weight": np.zeros((8, 3, 7, 7), np.float32)}, file)
    with pytest.raises(PretrainedError, match="layer1.0.conv3.weight missing.*another kind of network"):
        published_resnet(file)


def test_a_directory_that_is_taken(published, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    for function in (baselines.import_clip, baselines.import_resnet):
        with pytest.raises(PretrainedError, match="exists already"):
            function(published, tmp_path / "out")
