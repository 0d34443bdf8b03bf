"""The whole network against outputs of the public PyTorch one, weights rebuilt from names and shapes."""

import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rahf.core.batch import HEATMAPS, SCORES
from rahf.critic import losses
from rahf.critic.networks.build import build
from rahf.critic.published import richhf_torch
from rahf.nn import functional


def rebuild(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """The state dict that belongs to the golden outputs: every tensor is drawn from its name."""
    state = {}
    for name, shape in shapes.items():
        value = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
        if name.endswith(".scale") or "layer_norm.weight" in name or ("layernorm" in name and name.endswith("weight")):
            value = 1 + np.float32(0.1) * value
        elif len(shape) > 1:
            value = value / np.float32(np.sqrt(np.prod(shape[1:])))
        else:
            value = np.float32(0.1) * value
        state[name] = value
    for name in ("t5.encoder.embed_tokens.weight", "t5.decoder.embed_tokens.weight", "t5.lm_head.weight"):
        state[name] = state["t5.shared.weight"]
    return state


@pytest.fixture(scope="module")
def layout(shared):
    return json.loads((shared / "golden" / "richhf_torch_golden.json").read_text())


@pytest.fixture(scope="module")
def golden(shared):
    with np.load(shared / "golden" / "richhf_torch_golden.npz") as stored:
        return {name: stored[name] for name in stored}


@pytest.fixture(scope="module")
def state(layout):
    return rebuild(layout["shapes"])


@pytest.fixture(scope="module")
def converted(state, layout):
    return richhf_torch.convert_richhf(state, vit_heads=layout["config"]["vit"]["num_attention_heads"])


@pytest.fixture(scope="module")
def run(converted, golden):
    """Parameters → everything the network says of the golden batch, in one compilation."""
    graphdef, _ = functional.abstract(build(converted[0]))
    # The golden picture is normalised already, the network's input is not.
    image = jnp.asarray(golden["image_nchw"].transpose(0, 2, 3, 1) * 0.5 + 0.5)
    ids, target = jnp.asarray(golden["text_ids"], jnp.int32), jnp.asarray(golden["target_ids"], jnp.int32)

    @jax.jit
    def run(params):
        model = functional.merge(graphdef, params)
        fused = model.fuse(model.image_tokens(image), ids, jnp.ones(ids.shape, bool))
        return (
            jax.nn.sigmoid(model.heatmap_logits(fused)),
            jax.nn.sigmoid(model.score_logits(fused)),
            model.sequence_logits(fused, target),
            model.generate(fused, 8),
        )

    return lambda params: jax.tree.map(np.asarray, run(params))


@pytest.fixture(scope="module")
def outputs(run, converted):
    return run(converted[1])


def test_sizes_are_inferred_from_shapes(converted, layout):
    config, _ = converted
    wide, text = layout["config"]["vit"], layout["config"]["t5"]
    assert config.image_size == wide["image_size"] and config.decoder_sees == "text"
    v, t = config.vit, config.t5
    assert (v.patch_size, v.width, v.depth, v.heads, v.mlp_width) == (16, 64, 2, 4, wide["intermediate_size"])
    assert v.class_token and v.layer_norm_eps == 1e-12
    assert (t.vocab_size, t.width, t.head_width, t.heads, t.mlp_width) == (
        256,
        64,
        text["d_kv"],
        4,
        text["d_ff"],
    )
    assert (t.encoder_layers, t.decoder_layers, t.ff, t.tie_embeddings) == (2, 2, "relu", True)
    assert config.heatmap_head.conv_widths == (768, 384) and config.heatmap_head.up_widths == (
        768,
        384,
        384,
        192,
    )
    assert config.score_head.conv_widths == (64, 32, 16, 8, 4, 1) and config.score_head.dense_widths == (
        512,
        128,
    )


def test_heatmaps(outputs, golden):
    for number, name in enumerate(HEATMAPS):
        expected = golden[f"heatmap_{name}"]
        assert expected.std() > 1e-3  # a constant map would prove nothing
        np.testing.assert_allclose(outputs[0][..., number], expected, atol=1e-4, rtol=0)


def test_scores(outputs, golden):
    expected = np.stack([golden[f"score_{name}"] for name in SCORES], -1)
    np.testing.assert_allclose(outputs[1], expected, atol=1e-4, rtol=0)


def test_vocabulary_logits_and_loss(outputs, golden):
    np.testing.assert_allclose(outputs[2], golden["logits"], atol=1e-4, rtol=0)
    target = jnp.asarray(golden["target_ids"], jnp.int32)
    values = losses.sequence_values(jnp.asarray(outputs[2]), target)
    loss = losses.masked_mean(values, jnp.ones(target.shape, bool))
    np.testing.assert_allclose(loss, golden["seq_loss"], atol=1e-4, rtol=0)


def test_greedy_tokens(outputs, golden):
    generated = golden["generated_ids"]
    assert (generated[:, 0] == 0).all()  # PyTorch's output begins with the start id, ours does not
    np.testing.assert_array_equal(outputs[3], generated[:, 1:])


def test_a_misread_layout_would_be_seen(run, converted, golden):
    """The tolerance means something: a flipped transposed convolution is far outside of it."""
    flat = functional.flatten(converted[1])
    path = "heatmap_implausibility/up_0/up/kernel"
    flat[path] = np.ascontiguousarray(flat[path][::-1, ::-1])
    flipped = run(functional.unflatten(flat))[0][..., 0]
    assert np.abs(flipped - golden["heatmap_implausibility"]).max() > 1e-2
