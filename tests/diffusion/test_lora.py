"""Adapters in files: all dialects there and back, other spellings, and what is refused."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from rahf.core.errors import ArgumentError, PretrainedError
from rahf.diffusion import lora as lora_lib
from rahf.diffusion.lora import Layer, Lora
from tests.helpers import stable_diffusion_maker as maker

KERNELS = (
    "unet/conv_in/kernel",
    "unet/conv_out/kernel",
    "unet/time_embedding/linear_1/kernel",
    "unet/down_blocks/0/resnets/0/conv1/kernel",
    "unet/down_blocks/0/attentions/0/proj_in/kernel",
    "unet/down_blocks/0/attentions/0/transformer_blocks/0/attn1/to_q/kernel",
    "unet/mid_block/attentions/0/transformer_blocks/0/attn2/to_out/0/kernel",
    "unet/up_blocks/0/upsamplers/0/conv/kernel",
    "text_encoder/layer_0/query/kernel",
    "text_encoder/layer_0/wi/kernel",
)


@pytest.fixture(scope="module")
def pipe():
    return maker.pipeline()


def random_lora(pipe, kernels=KERNELS, rank=2, alpha=3.0):
    rng, flat = np.random.default_rng(0), lora_lib.flatten(pipe.params)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    return Lora(
        {
            k: Layer(draw(*flat[k].shape[:-1], rank), draw(rank, flat[k].shape[-1]), alpha + i)
            for i, k in enumerate(kernels)
        }
    )


@pytest.mark.parametrize("dialect", lora_lib.DIALECTS)
def test_there_and_back(pipe, dialect, tmp_path):
    lora = random_lora(pipe)
    lora_lib.write(lora, tmp_path / "lora.safetensors", pipe, dialect)
    back = lora_lib.read(tmp_path / "lora.safetensors", pipe)
    assert back.layers.keys() == lora.layers.keys()
    for path, layer in lora.layers.items():
        ours = back.layers[path]
        np.testing.assert_allclose(
            ours.scale * (ours.a @ ours.b), layer.scale * (layer.a @ layer.b), rtol=1e-5, atol=1e-5
        )


def test_names_and_shapes_in_files(pipe, tmp_path):
    lora = random_lora(pipe)
    names = {}
    for dialect in lora_lib.DIALECTS:
        lora_lib.write(lora, tmp_path / dialect, pipe, dialect)
        names[dialect] = {name: value.shape for name, value in load_file(tmp_path / dialect).items()}
    attention = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    assert names["peft"][f"{attention}.lora_A.weight"] == (2, 8)
    assert names["peft"]["unet.conv_in.lora_A.weight"] == (2, 4, 3, 3)
    assert names["peft"]["unet.conv_in.lora_B.weight"] == (8, 2, 1, 1)
    assert names["peft"]["unet.down_blocks.0.attentions.0.proj_in.lora_A.weight"] == (2, 8, 1, 1)
    assert names["diffusers"][f"{attention}.lora.down.weight"] == (2, 8)
    assert names["kohya"]["lora_unet_time_embedding_linear_1.alpha"] == ()
    assert "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight" in names["kohya"]
    with safe_open(tmp_path / "peft", "np") as file:
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
    assert metadata["unet.r"] == 2 and metadata["unet.lora_alpha"] == 3.0
    assert metadata["unet.alpha_pattern"]["conv_out"] == 4.0
    assert metadata["text_encoder.target_modules"] == [
        "text_model.encoder.layers.0.mlp.fc1", "text_model.encoder.layers.0.self_attn.q_proj"
    ]  # fmt: skip


def test_other_spellings(pipe, tmp_path):
    """Of older files, of peft's own folder, and of the first code of Stable Diffusion."""
    kernel = "unet/down_blocks/0/attentions/0/transformer_blocks/0/attn1/to_q/kernel"
    layer = random_lora(pipe, (kernel,)).layers[kernel]
    a, b = np.ascontiguousarray(layer.a.T), np.ascontiguousarray(layer.b.T)
    stem = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    for number, (name_a, name_b) in enumerate(
        (
            (f"unet.{stem}.processor.to_q_lora.down.weight", f"unet.{stem}.processor.to_q_lora.up.weight"),
            (f"base_model.model.{stem}.to_q.lora_A.weight", f"base_model.model.{stem}.to_q.lora_B.weight"),
            (
                "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_down.weight",
                "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_up.weight",
            ),
        )
    ):
        save_file({name_a: a, name_b: b}, tmp_path / f"{number}.safetensors")
        back = lora_lib.read(tmp_path / f"{number}.safetensors", pipe)
        np.testing.assert_array_equal(back.layers[kernel].a, layer.a)
        assert back.layers[kernel].scale == 1.0  # no alpha: the rank
    folder = tmp_path / "peft"
    folder.mkdir()
    (tmp_path / "1.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 8}))
    assert lora_lib.read(folder, pipe).layers[kernel].scale == 4.0


def test_the_first_codes_numbers():
    """Of XL's U-Net, as its files name the places."""
    names = lora_lib._first_names(maker.SDXL_UNET)
    assert names["down_blocks.1.attentions.0"] == "input_blocks.4.1"
    assert names["down_blocks.0.downsamplers.0.conv"] == "input_blocks.3.0.op"
    assert names["down_blocks.2.attentions.1"] == "input_blocks.8.1"
    assert names["up_blocks.0.attentions.2"] == "output_blocks.2.1"
    assert names["up_blocks.0.upsamplers.0.conv"] == "output_blocks.2.2.conv"
    assert names["up_blocks.2.resnets.2"] == "output_blocks.8.0"


def test_merging(pipe):
    lora = random_lora(pipe, ("unet/conv_in/kernel", "unet/time_embedding/linear_1/kernel"))
    params = lora_lib.merged(pipe.params, lora, scale=0.5)
    for path, layer in lora.layers.items():
        before, after = (lora_lib.flatten(tree)[path] for tree in (pipe.params, params))
        expected = np.einsum("...ir,ro->...io", layer.a, layer.b) * layer.alpha / 2 * 0.5
        np.testing.assert_allclose(after - before, expected, atol=1e-5)
    with pytest.raises(ArgumentError, match="unet/nowhere/kernel: .* no such kernel"):
        lora_lib.merged(pipe.params, Lora({"unet/nowhere/kernel": layer}))


def test_of_a_run():
    tree = {
        "scale": jnp.float32(4.0),
        "adapters": {"unet": {"k": {"kernel": {"a": np.ones((3, 2)), "b": np.ones((2, 5))}}}},
    }
    assert lora_lib.of_adapters(tree).layers["unet/k/kernel"].scale == 4.0


def test_zero_adapters_are_reported(pipe, tmp_path):
    layer = random_lora(pipe, KERNELS[:1]).layers[KERNELS[0]]
    lora = Lora({KERNELS[0]: layer._replace(b=layer.b * 0)})
    assert lora.zero_layers == [KERNELS[0]]
    lora_lib.write(lora, tmp_path / "zero.safetensors", pipe)
    with pytest.warns(lora_lib.LoraWarning, match="all 1 adapters are zero"):
        lora_lib.read(tmp_path / "zero.safetensors", pipe)


@pytest.mark.parametrize(
    "tensors, message",
    [
        ({"unet.nowhere.lora_A.weight": (2, 8), "unet.nowhere.lora_B.weight": (8, 2)}, "adapts unet.nowhere"),
        ({"unet.conv_in.lora_A.weight": (2, 4, 3, 3)}, "one half"),
        (
            {"unet.conv_in.lora_A.weight": (2, 9, 3, 3), "unet.conv_in.lora_B.weight": (8, 2, 1, 1)},
            "another base model",
        ),
        ({"weight": (2,)}, "no adapters"),
        ({"unet.conv_in.lora_A.weight": (2, 4, 3, 3), "x.lokr_w1": (2,)}, "x.lokr_w1 is no part"),
    ],
)
def test_refusals(pipe, tensors, message, tmp_path):
    save_file({name: np.ones(shape, np.float32) for name, shape in tensors.items()}, tmp_path / "l.safetensors")
    with pytest.raises(PretrainedError, match=message):
        lora_lib.read(tmp_path / "l.safetensors", pipe)
    with pytest.raises(PretrainedError, match="no such file"):
        lora_lib.read(tmp_path / "missing.safetensors", pipe)
