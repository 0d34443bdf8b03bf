"""The public RichHF checkpoint: converted strictly, and written as a model directory."""

import hashlib
import json

import jax
import numpy as np
import pytest

import rahf
from rahf import text
from rahf.config import Config, from_json
from rahf.core import errors
from rahf.core.errors import PretrainedError
from rahf.critic.networks.build import build
from rahf.critic.published import richhf_torch
from rahf.nn import functional
from rahf.training import checkpoint
from rahf.training.model_folder import write_model
from tests.helpers import pretrained_maker as maker


def test_sizes_of_short_heads():
    config, params = richhf_torch.convert_richhf(maker.richhf_state(), vit_heads=2)
    assert config.heatmap_head.conv_widths == (12,) and config.heatmap_head.up_widths == (10, 6)
    assert config.score_head.conv_widths == (8, 3) and config.score_head.dense_widths == (7,)
    assert config.score_head.kernel_size == 3 and config.image_size == 32
    assert not functional.parameter_differences(params, functional.abstract(build(config))[1])


def test_rows_of_the_first_dense_layer_follow_the_grid():
    """PyTorch flattens [channel, y, x]; the converted kernel gives the same sums on [y, x, channel]."""
    state = maker.richhf_state()
    _, params = richhf_torch.convert_richhf(state, vit_heads=2)
    features = np.random.default_rng(5).standard_normal((3, 4, 4)).astype(np.float32)
    theirs = state["score_predictor.overall.linear_layers.0.weight"] @ features.reshape(-1)
    ours = features.transpose(1, 2, 0).reshape(-1) @ params["score_overall"]["dense_0"]["kernel"]
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_heads_must_be_said_where_the_convention_does_not_tell():
    with pytest.raises(PretrainedError, match="16 channels are not heads of 64; say how many"):
        richhf_torch.convert_richhf(maker.richhf_state())


@pytest.mark.parametrize(
    "name",
    [
        "vit.encoder.layer.1.layernorm_after.bias",
        "t5.decoder.final_layer_norm.weight",
        "heatmap_predictor.misalignment.conv_layers2.1.4.scale",
        "score_predictor.aesthetics.linear_layers.2.bias",
        "visual_token_projection.weight",
    ],
)
def test_missing_and_broken_tensors_are_named(name):
    state = maker.richhf_state()
    complete = state.pop(name)
    with pytest.raises(PretrainedError, match=f"{name}: missing, expected shape"):
        richhf_torch.convert_richhf(state, vit_heads=2)
    state[name] = np.full_like(complete, np.nan)
    with pytest.raises(PretrainedError, match=f"{name}: {complete.size} of {complete.size} values are NaN"):
        richhf_torch.convert_richhf(state, vit_heads=2)
    state[name] = np.zeros((*complete.shape, 1), np.float32)
    with pytest.raises(PretrainedError, match=f"{name}: shape"):
        richhf_torch.convert_richhf(state, vit_heads=2)


def test_extra_tensors_are_named():
    state = maker.richhf_state() | {"score_predictor.beauty.linear_layers.0.weight": np.zeros((1, 1), np.float32)}
    with pytest.raises(PretrainedError, match="score_predictor.beauty.* not part of this network"):
        richhf_torch.convert_richhf(state, vit_heads=2)


def test_another_kind_of_network_is_refused():
    with pytest.raises(PretrainedError, match="vit.embeddings.patch_embeddings.projection.weight missing"):
        richhf_torch.convert_richhf(maker.t5_state(), vit_heads=2)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """A SentencePiece file and its number of pieces."""
    file = tmp_path_factory.mktemp("vocabulary") / "spiece.model"
    file.write_bytes(text.train_tokenizer(["a yellow cat sits on a red mat", "two dogs run in the snow"], 320))
    return file, text.load_tokenizer(file).vocab_size


@pytest.fixture
def published(tmp_path, vocabulary):
    """A tiny checkpoint as PyTorch saves it."""
    torch = pytest.importorskip("torch", reason="writing a .pt file needs PyTorch: pip install rahf[torch]")
    file, state = tmp_path / "best.pt", maker.richhf_state(vocabulary[1])
    torch.save({name: torch.from_numpy(value) for name, value in state.items()}, file)
    return file


def stored_params(out):
    """Configuration and parameters as any command finds and reads them."""
    run, state_folder = checkpoint.find(out)
    assert run == out and state_folder == out / "checkpoints" / "best" / "0" / "state"
    config = from_json((out / "config.json").read_text())
    _, expected = functional.abstract(build(config.model))
    return config, functional.flatten(checkpoint.load_params(state_folder, expected))


def test_a_model_directory_is_found_and_read_like_a_run(tmp_path, vocabulary):
    model, converted = richhf_torch.convert_richhf(maker.richhf_state(vocabulary[1]), vit_heads=2)
    tokenizer, out = text.load_tokenizer(vocabulary[0]), tmp_path / "models" / "richhf"
    config = Config(workdir=str(out), model=model)
    write_model(out, config, converted, tokenizer, {"license": "unknown"})
    actual, stored = stored_params(out)
    assert actual == config
    for path, value in functional.flatten(converted).items():
        np.testing.assert_array_equal(jax.device_get(stored[path]), value)
    assert (out / "tokenizer.model").read_bytes() == tokenizer.model
    assert [p.name for p in out.parent.iterdir()] == ["richhf"]  # nothing temporary is left


def test_a_model_directory_loads_and_names_its_license(tmp_path, vocabulary, caplog):
    """`rahf.load` is what every command but evaluate loads by; evaluate reads the parameters in the same way."""
    model, converted = richhf_torch.convert_richhf(maker.richhf_state(vocabulary[1]), vit_heads=2)
    out = tmp_path / "richhf"
    record = {"license": "CC BY-NC 4.0", "source": "rahf_model.pt"}
    config = Config(workdir=str(out), model=model)
    write_model(out, config, converted, text.load_tokenizer(vocabulary[0]), record)
    critic = rahf.load(out)
    assert caplog.messages == ["weights of richhf come from rahf_model.pt: license CC BY-NC 4.0"]
    assert critic.provenance.weight_license == "CC BY-NC 4.0"
    scores = critic(np.zeros((8, 8, 3), np.uint8), "a yellow cat").scores
    assert scores.shape == (1, 4) and ((0 < scores) & (scores <= 1)).all()


def test_import_makes_a_model_directory(tmp_path, published, vocabulary):
    out = tmp_path / "models" / "richhf"
    made = richhf_torch.import_checkpoint(published, out, license="CC BY-NC 4.0", tokenizer=vocabulary[0], vit_heads=2)
    assert made == out
    config, stored = stored_params(out)
    model, converted = richhf_torch.convert_richhf(maker.richhf_state(vocabulary[1]), vit_heads=2)
    assert config.model == model
    np.testing.assert_array_equal(jax.device_get(stored["embedding"]), converted["embedding"])
    record = json.loads((out / "model.json").read_text())
    assert record["license"] == "CC BY-NC 4.0" and record["source"] == "best.pt"
    assert record["parameters"] == functional.count(converted)
    assert record["sha256"] == hashlib.sha256(published.read_bytes()).hexdigest()


def test_import_without_a_license_records_unknown(tmp_path, published, vocabulary):
    out = tmp_path / "out"
    out.mkdir()  # an empty directory may be there
    richhf_torch.import_checkpoint(published, out, tokenizer=vocabulary[0], vit_heads=2)
    assert json.loads((out / "model.json").read_text())["license"] == "unknown"


def test_import_does_not_overwrite(tmp_path, published, vocabulary):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    with pytest.raises(PretrainedError, match="out: exists already"):
        richhf_torch.import_checkpoint(published, tmp_path / "out", tokenizer=vocabulary[0], vit_heads=2)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_failed_import_leaves_nothing_behind(tmp_path, published, vocabulary, monkeypatch):
    folder = tmp_path / "models"

    def full(*args):
        raise errors.CheckpointError("disk full")

    monkeypatch.setattr(checkpoint.Checkpointer, "save_best", full)
    with pytest.raises(errors.CheckpointError, match="disk full"):
        richhf_torch.import_checkpoint(published, folder / "out", tokenizer=vocabulary[0], vit_heads=2)
    assert list(folder.iterdir()) == []


def test_a_foreign_vocabulary_is_refused(tmp_path, vocabulary):
    torch = pytest.importorskip("torch", reason="writing a .pt file needs PyTorch: pip install rahf[torch]")
    state = maker.richhf_state(40)
    torch.save({name: torch.from_numpy(value) for name, value in state.items()}, tmp_path / "x.pt")
    with pytest.raises(PretrainedError, match=f"has {vocabulary[1]} pieces, the network's embedding 40 rows"):
        richhf_torch.import_checkpoint(tmp_path / "x.pt", tmp_path / "out", tokenizer=vocabulary[0], vit_heads=2)
    with pytest.raises(PretrainedError, match="absent.pt: no such file"):
        richhf_torch.import_checkpoint(tmp_path / "absent.pt", tmp_path / "out", tokenizer=vocabulary[0])
