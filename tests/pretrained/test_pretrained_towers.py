"""ViT and T5 checkpoints are taken strictly: every wrong tensor is named, and nothing is left random."""

import dataclasses

import numpy as np
import pytest

from rahf import text
from rahf.config import ViTConfig
from rahf.core.errors import PretrainedError
from rahf.nn import functional
from rahf.pretrained import dinov2, positions, siglip, t5
from rahf.pretrained.towers import published_tower
from rahf.pretrained.vision import load_vision, published_vision
from tests.helpers import pretrained_maker as maker


def load_image_tower(folder, size=32, **changes):
    return load_vision(folder, dataclasses.replace(published_vision(folder).vit, **changes), size)


KINDS = {
    "vit": (maker.VIT, maker.vit_state, load_image_tower, "encoder.layer.1.output.dense.weight"),
    "siglip": (maker.SIGLIP, maker.siglip_state, load_image_tower, "vision_model.encoder.layers.1.mlp.fc2.weight"),
    "dinov2": (maker.DINOV2, maker.dinov2_state, load_image_tower, "encoder.layer.1.mlp.fc1.weight"),
    "t5": (maker.T5, maker.t5_state, t5.load_t5, "decoder.block.1.layer.1.EncDecAttention.k.weight"),
}


UNUSED = ("pooler.", "vision_model.head.", "embeddings.mask_token")


@pytest.fixture(params=KINDS)
def kind(request):
    config, state, load, name = KINDS[request.param]
    return config, state(), load, name


def test_whole_checkpoints_load(tmp_path, kind):
    config, state, load, _ = kind
    params = load(maker.save(tmp_path, config, state, parts=2))
    unused = sum(value.size for name, value in state.items() if name.startswith(UNUSED))
    assert functional.count(params) == sum(value.size for value in state.values()) - unused


def test_a_missing_tensor_is_named(tmp_path, kind):
    config, state, load, name = kind
    shape = state.pop(name).shape
    with pytest.raises(PretrainedError) as caught:
        load(maker.save(tmp_path, config, state))
    assert f"{name}: missing, expected shape {shape}" in str(caught.value) and str(tmp_path) in str(caught.value)


def test_an_extra_tensor_is_named(tmp_path, kind):
    config, state, load, _ = kind
    state["encoder.extra.weight"] = np.zeros((2, 3), np.float32)
    with pytest.raises(
        PretrainedError,
        match=r"encoder.extra.weight: not part of this network, shape \(2, 3\) \(in model.safe",
    ):
        load(maker.save(tmp_path, config, state))


def test_a_misshapen_tensor_is_named(tmp_path, kind):
    config, state, load, name = kind
    expected = state[name].shape
    state[name] = np.zeros((5, 5), np.float32)
    with pytest.raises(PretrainedError) as caught:
        load(maker.save(tmp_path, config, state))
    assert f"{name}: shape (5, 5), expected {expected} (in model.safetensors)" in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path, kind, value):
    config, state, load, name = kind
    state[name][0, :2] = value
    with pytest.raises(
        PretrainedError, match=f"{name}: 2 of .* NaN or infinite \\(in model-0000.-of-00002.safetensors"
    ):
        load(maker.save(tmp_path, config, state, parts=2))


def test_integers_are_no_weights(tmp_path, kind):
    config, state, load, name = kind
    state[name] = np.zeros(state[name].shape, np.int32)
    with pytest.raises(PretrainedError, match=f"{name}: I32, expected a float type"):
        load(maker.save(tmp_path, config, state))


def test_all_problems_come_in_one_message(tmp_path, kind):
    config, state, load, name = kind
    del state[name]
    state["surplus"] = np.zeros(1, np.float32)
    with pytest.raises(PretrainedError) as caught:
        load(maker.save(tmp_path, config, state))
    assert name in str(caught.value) and "surplus" in str(caught.value)


def test_the_other_family_is_refused(tmp_path, kind):
    config, state, _, _ = kind
    maker.save(tmp_path, config, state)
    model_type = config["model_type"]
    with pytest.raises(PretrainedError, match=f"config.json: model_type is {model_type!r}, expected"):
        (published_vision if model_type == "t5" else t5.load_t5)(tmp_path)
    other = dinov2 if model_type.startswith("siglip") else siglip
    with pytest.raises(PretrainedError, match=f"model_type is {model_type!r}, expected '(siglip|dinov2)'"):
        published_tower(other.FAMILY, tmp_path)


def test_vit_places(tmp_path):
    """Each kind of tensor lands where the network looks for it."""
    state = maker.vit_state()
    params = load_image_tower(maker.save(tmp_path, maker.VIT, state))
    patch = state["embeddings.patch_embeddings.projection.weight"]  # [out, colour, y, x]
    np.testing.assert_array_equal(params["embed"]["kernel"].reshape(8, 8, 3, 16)[2, 5, 1], patch[:, 1, 2, 5])
    np.testing.assert_array_equal(params["position"], state["embeddings.position_embeddings"][0])
    np.testing.assert_array_equal(params["class_token"], state["embeddings.cls_token"][0, 0])
    query = state["encoder.layer.0.attention.attention.query.weight"]
    np.testing.assert_array_equal(params["layer_0"]["query"]["kernel"], query.T)


def test_vit_without_class_token(tmp_path):
    state = maker.vit_state()
    params = load_image_tower(maker.save(tmp_path, maker.VIT, state), class_token=False)
    assert "class_token" not in params
    np.testing.assert_array_equal(params["position"], state["embeddings.position_embeddings"][0, 1:])


def test_vit_of_other_sizes_is_refused(tmp_path):
    maker.save(tmp_path, maker.VIT, maker.vit_state())
    with pytest.raises(PretrainedError) as caught:
        load_vision(tmp_path, ViTConfig(patch_size=8, width=16, depth=2, heads=4, mlp_width=24, stem=(4,)), 32)
    lines = str(caught.value).splitlines()[1:]
    assert lines == [
        "  model.vit.heads is 4, the checkpoint has 2",
        "  model.vit.layer_norm_eps is 1e-06, the checkpoint has 1e-12",
        "  model.vit.stem is (4,), the checkpoint has ()",
    ]


@pytest.mark.parametrize(
    "field, value", [("hidden_act", "relu"), ("num_channels", 1), ("image_size", [32, 64]), ("head_dim", 5)]
)
def test_vit_variants_that_do_not_exist_here(tmp_path, field, value):
    maker.save(tmp_path, {**maker.VIT, field: value}, maker.vit_state())
    with pytest.raises(PretrainedError, match=f"config.json: {field} is"):
        published_vision(tmp_path)


def test_normalisation_beside_the_weights(tmp_path):
    maker.save(tmp_path, maker.VIT, maker.vit_state())
    assert published_vision(tmp_path).image_mean == (0.5, 0.5, 0.5)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.4, 0.5, 0.6], "do_resize": true}')
    published = published_vision(tmp_path)
    assert published.image_mean == (0.4, 0.5, 0.6) and published.image_std == (0.5, 0.5, 0.5)


def test_positions_by_hand():
    """Two positions to four in each direction: half-pixel centres at -1/4, 1/4, 3/4, 5/4."""
    square = np.array([[0.0, 1.0], [2.0, 3.0]], np.float32).reshape(4, 1)
    linear = positions.resize_positions(square, 2, 4, "bilinear").reshape(4, 4)
    np.testing.assert_allclose(linear[0], [0.0, 0.25, 0.75, 1.0])  # the border value is repeated
    np.testing.assert_allclose(linear[:, 0], [0.0, 0.5, 1.5, 2.0])
    # Weights of cubic convolution with a = -3/4 at a distance of 1/4: -27/256, 225/256, 67/256, -9/256.
    weights = positions._resize_matrix(8, 16, "bicubic")[7] * 256
    np.testing.assert_allclose(weights, [0, 0, -27, 225, 67, -9, 0, 0], atol=1e-9)


@pytest.mark.parametrize("way", ["bicubic", "bilinear"])
def test_positions_of_the_same_grid_and_of_constants(way):
    values = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    assert positions.resize_positions(values, 3, 3, way) is values
    even = positions.resize_positions(np.full((9, 2), 1.5, np.float32), 3, 7, way)
    assert even.dtype == np.float32
    np.testing.assert_allclose(even, 1.5, rtol=1e-6)
    with pytest.raises(ValueError, match="'nearest'"):
        positions.resize_positions(values, 3, 4, "nearest")


def test_vit_at_another_size_moves_only_the_patches(tmp_path):
    state = maker.vit_state()
    maker.save(tmp_path, maker.VIT, state)
    params = load_image_tower(tmp_path, size=48)
    assert params["position"].shape == (37, 16)
    np.testing.assert_array_equal(params["position"][0], state["embeddings.position_embeddings"][0, 0])


def test_t5_copies_of_the_embedding_must_be_equal(tmp_path):
    state = maker.t5_state()
    state["encoder.embed_tokens.weight"] = state["shared.weight"].copy()
    state["lm_head.weight"] = state["shared.weight"] + 1
    with pytest.raises(PretrainedError, match="lm_head.weight: differs from the tensor that it is said to share"):
        t5.load_t5(maker.save(tmp_path, maker.T5, state))


def test_t5_embedding_under_its_other_name_and_a_tensor_nobody_uses(tmp_path):
    state = maker.t5_state()
    table = state["encoder.embed_tokens.weight"] = state.pop("shared.weight")
    state["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = np.zeros((32, 2), np.float32)
    np.testing.assert_array_equal(t5.load_t5(maker.save(tmp_path, maker.T5, state))["embedding"], table)


@pytest.mark.parametrize(
    "fields, scaled",
    [
        ({}, True),
        ({"tie_word_embeddings": False}, False),
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, False),
    ],
)
def test_t5_scaling_of_logits_as_old_and_new_configs_say_it(tmp_path, fields, scaled):
    state = maker.t5_state()
    maker.save(tmp_path, {**maker.T5, **fields}, state)
    assert t5.published_t5(tmp_path).tie_embeddings == scaled
    params = t5.load_t5(tmp_path)
    assert ("output" in params) != scaled
    if not scaled:  # no head of its own: tied, but not scaled
        np.testing.assert_array_equal(params["output"], state["shared.weight"].T)


@pytest.mark.parametrize("field, value", [("feed_forward_proj", "gated-silu"), ("layer_norm_epsilon", 1e-5)])
def test_t5_variants_that_do_not_exist_here(tmp_path, field, value):
    maker.save(tmp_path, {**maker.T5, field: value}, maker.t5_state())
    with pytest.raises(PretrainedError, match=f"config.json: {field} is {value!r}"):
        t5.published_t5(tmp_path)


def test_t5_of_other_sizes_is_refused(tmp_path):
    published = t5.published_t5(maker.save(tmp_path, maker.T5, maker.t5_state()))
    with pytest.raises(PretrainedError, match="model.t5.decoder_layers is 3, the checkpoint has 2"):
        t5.load_t5(tmp_path, dataclasses.replace(published, decoder_layers=3))
    t5.load_t5(tmp_path, dataclasses.replace(published, decoder_layers=3), decoder=False)


def test_vocabularies(tmp_path):
    """T5 has 32,000 pieces and 32,128 rows; other sizes belong to other networks."""
    model = text.train_tokenizer(["a yellow cat sits on a red mat", "two dogs run in the snow"], 320)
    (tmp_path / "spiece.model").write_bytes(model)
    pieces = text.Tokenizer(model).vocab_size
    assert t5.published_t5_tokenizer(tmp_path, pieces).vocab_size == pieces
    assert t5.published_t5_tokenizer(tmp_path / "spiece.model", 512 if pieces > 284 else 384).vocab_size == pieces
    for rows in (pieces - 1, 32128):
        with pytest.raises(
            PretrainedError, match=f"spiece.model: has {pieces} pieces, the network's embedding {rows} rows"
        ):
            t5.published_t5_tokenizer(tmp_path, rows)
    (tmp_path / "spiece.model").unlink()
    with pytest.raises(PretrainedError, match="spiece.model: missing"):
        t5.published_t5_tokenizer(tmp_path, pieces)
