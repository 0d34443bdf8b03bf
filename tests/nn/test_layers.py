"""Building blocks against direct formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from rahf.config import HeatmapHeadConfig, ScoreHeadConfig, T5Config, ViTConfig
from rahf.critic.networks import heads
from rahf.nn import functional, layers, t5, vit
from rahf.nn.attention import attention

F32 = jnp.dtype("float32")
rng = np.random.default_rng


def make(build, seed=0, noise=0.3):
    """A compiled function (params, *inputs) → outputs, and parameters with noise on biases and norms, too."""
    graphdef, _ = functional.abstract(build)
    flat = functional.flatten(functional.init(build, seed))
    stream = rng(seed)
    params = {k: np.asarray(v) + noise * stream.standard_normal(v.shape, np.float32) for k, v in flat.items()}
    run = jax.jit(lambda params, *inputs: functional.merge(graphdef, functional.unflatten(params))(*inputs))
    return run, params


def normal(*shape, seed=1):
    return rng(seed).standard_normal(shape, np.float32)


def close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=tolerance, atol=tolerance)


# Norms


def test_layer_norm_by_hand():
    norm = layers.LayerNorm(4, eps=0.25)
    norm.scale[...] = jnp.asarray([1.0, 2.0, 1.0, 1.0])
    norm.bias[...] = jnp.asarray([0.0, 0.0, 5.0, 0.0])
    x = jnp.asarray([[1.0, 3.0, 2.0, 2.0]])  # mean 2, variance 1/2; with eps sqrt(3/4)
    close(norm(x), [[-((4 / 3) ** 0.5), 2 * (4 / 3) ** 0.5, 5.0, 0.0]])


def test_rms_norm_by_hand():
    norm = layers.RMSNorm(3, eps=1.0)
    norm.scale[...] = jnp.asarray([1.0, 1.0, 10.0])
    close(norm(jnp.asarray([[3.0, 0.0, -3.0]])), [[3 / 7**0.5, 0.0, -30 / 7**0.5]])  # mean square 6


def test_norms_compute_in_float32():
    x = jnp.asarray([[1000.0, 1001.0, 1002.0, 1003.0]], jnp.bfloat16)
    for norm in (layers.LayerNorm(4, dtype=jnp.bfloat16), layers.RMSNorm(4, dtype=jnp.bfloat16)):
        y = norm(x)
        exact = (layers.LayerNorm(4) if hasattr(norm, "bias") else layers.RMSNorm(4))(x.astype(F32))
        assert y.dtype == jnp.bfloat16 and norm.scale[...].dtype == F32
        close(y.astype(F32), exact, 1e-2)


def test_channel_norm_kinds():
    assert isinstance(layers.channel_norm("layer", 4, F32), layers.LayerNorm)
    rms = layers.channel_norm("rms", 4, F32)
    assert isinstance(rms, layers.RMSNorm) and rms.eps == 1e-8


# Linear, dropout


def test_linear():
    run, params = make(lambda: layers.Linear(3, 2, bias=True, std=1.0, dtype=F32))
    x = normal(2, 5, 3)
    close(run(params, x), x @ params["kernel"] + params["bias"])
    run, params = make(lambda: layers.Linear(3, 2, bias=False, std=1.0, dtype=jnp.dtype("bfloat16")))
    assert list(params) == ["kernel"] and run(params, x).dtype == jnp.bfloat16
    close(run(params, x).astype(F32), x @ params["kernel"], 5e-2)


def test_dropout():
    x, key = jnp.ones((100, 100)), jax.random.key(0)
    assert layers.dropout(x, 0.3, None) is x and layers.dropout(x, 0.0, key) is x
    y = np.asarray(layers.dropout(x, 0.25, key))
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    assert abs((y == 0).mean() - 0.25) < 0.02
    np.testing.assert_array_equal(y, layers.dropout(x, 0.25, key))
    assert (y != layers.dropout(x, 0.25, layers.subkey(key, 1))).any()


# Attention


def attention_by_hand(q, k, v, mask, bias, scale):
    out = np.zeros_like(q)
    for b, i, h in np.ndindex(q.shape[:3]):
        logits = scale * k[b, :, h] @ q[b, i, h] + bias[0, h, i]
        out[b, i, h] = softmax(np.where(mask[b, 0, i], logits, -np.inf)) @ v[b, :, h]
    return out


@pytest.mark.parametrize("scale", [None, 1.0])
def test_attention(scale):
    q, k, v = normal(2, 4, 2, 8, seed=1), normal(2, 5, 2, 8, seed=2), normal(2, 5, 2, 8, seed=3)
    mask = rng(0).random((2, 1, 4, 5)) < 0.6
    mask[..., 0] = True
    bias = normal(1, 2, 4, 5, seed=4)
    actual = jax.jit(functools.partial(attention, scale=scale))(q, k, v, mask=mask, bias=bias)
    close(actual, attention_by_hand(q, k, v, mask, bias, 8**-0.5 if scale is None else scale))


def test_masked_keys_do_not_matter():
    q, k, v = normal(2, 4, 2, 8, seed=1), normal(2, 5, 2, 8, seed=2), normal(2, 5, 2, 8, seed=3)
    mask = np.array([[1, 1, 1, 0, 0], [1, 0, 1, 1, 0]], bool)
    attend = jax.jit(lambda k, v: attention(q, k, v, mask=mask[:, None, None]))
    other = np.where(mask[..., None, None], 0, 1e3).astype(np.float32)
    np.testing.assert_array_equal(attend(k, v), attend(k + other, v - other))
    assert np.isfinite(jax.jit(lambda: attention(q, k, v, mask=np.zeros((2, 1, 1, 5), bool)))()).all()


# Convolutions


def convolution_by_hand(x, kernel, bias, stride, before, side):
    """Sums over taps: output i sees input stride * i + tap - before."""
    out = np.zeros((x.shape[0], side, side, kernel.shape[3]), np.float32) + bias
    for i, j, a, b in np.ndindex(side, side, *kernel.shape[:2]):
        y, z = stride * i + a - before, stride * j + b - before
        if 0 <= y < x.shape[1] and 0 <= z < x.shape[2]:
            out[:, i, j] += x[:, y, z] @ kernel[a, b]
    return out


@pytest.mark.parametrize(
    ("options", "before", "side"),
    [
        ({}, 1, 6),
        ({"stride": 2}, 0, 3),  # SAME with stride 2 pads an even side at its end only
        ({"size": 2}, 0, 6),
        ({"size": 2, "padding": "VALID"}, 0, 5),
    ],
)
def test_convolution(options, before, side):
    run, params = make(lambda: layers.Conv3x3(3, 4, dtype=F32, **options))
    x = normal(2, 6, 6, 3)
    expected = convolution_by_hand(x, params["kernel"], params["bias"], options.get("stride", 1), before, side)
    close(run(params, x), expected)


def test_transposed_convolution():
    run, params = make(lambda: layers.UpConv3x3(3, 5, dtype=F32))
    x, kernel = normal(2, 4, 3, 3), params["kernel"]
    actual = np.asarray(run(params, x))
    assert actual.shape == (2, 8, 6, 5)
    direct = jax.lax.conv_general_dilated(
        x,
        kernel[::-1, ::-1],
        (1, 1),
        ((1, 2), (1, 2)),
        lhs_dilation=(2, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    close(actual, direct + params["bias"])
    expected = np.zeros((2, 8, 6, 5), np.float32) + params["bias"]
    for i, j, a, b in np.ndindex(4, 3, 3, 3):  # input i reaches output 2i + tap - 1
        if 0 <= 2 * i + a - 1 < 8 and 0 <= 2 * j + b - 1 < 6:
            expected[:, 2 * i + a - 1, 2 * j + b - 1] += x[:, i, j] @ kernel[a, b]
    close(actual, expected)


# T5


def test_relative_buckets_both_ways():
    distances = [0, -1, -7, -8, -11, -12, -16, -32, -64, -127, -128, -1000, 1, 7, 8, 12, 16, 127, 5000]
    expected = [0, 1, 7, 8, 8, 9, 10, 12, 14, 15, 15, 15, 17, 23, 24, 25, 26, 31, 31]
    actual = t5.relative_buckets(
        np.array([5000]), 5000 + np.array(distances), bidirectional=True, buckets=32, max_distance=128
    )
    assert actual.tolist() == [expected]


def test_relative_buckets_backwards():
    distances = [0, 1, 500, -1, -15, -16, -20, -32, -64, -127, -128, -999]
    expected = [0, 0, 0, 1, 15, 16, 17, 21, 26, 31, 31, 31]
    actual = t5.relative_buckets(
        np.array([1000]), 1000 + np.array(distances), bidirectional=False, buckets=32, max_distance=128
    )
    assert actual.tolist() == [expected]


def test_relative_bias():
    config = T5Config(width=8, heads=2, relative_buckets=8, relative_max_distance=16, image_relative_bias=False)
    _, params = make(lambda: t5.RelativeBias(config, bidirectional=True))
    graphdef, _ = functional.abstract(lambda: t5.RelativeBias(config, bidirectional=True))
    module, table = functional.merge(graphdef, params), params["table"]  # 4 buckets a side, exact below 2
    bias = np.asarray(module(5))
    assert bias.shape == (1, 2, 5, 5)
    close(bias[0, :, 1, 1], table[0])
    close(bias[0, :, 2, 1], table[1])  # the key is one to the left
    close(bias[0, :, 1, 2], table[5])
    close(bias[0, :, 1, 3], table[6])
    separate = np.asarray(module(5, 3))
    assert not separate[..., :3, :3].any()  # image to image
    close(separate[..., 3:, :], bias[..., 3:, :])
    close(separate[..., :, 3:], bias[..., :, 3:])


@pytest.mark.parametrize("ff", ["relu", "gated-gelu"])
def test_feed_forward(ff):
    run, params = make(lambda: t5.FeedForward(T5Config(width=6, mlp_width=10, ff=ff), dtype=F32))
    x = normal(2, 3, 6)
    hidden = x @ params["wi/kernel"]
    if ff == "relu":
        assert "gate/kernel" not in params
        hidden = np.maximum(hidden, 0)
    else:
        g = x @ params["gate/kernel"]
        hidden = hidden * 0.5 * g * (1 + np.tanh((2 / np.pi) ** 0.5 * (g + 0.044715 * g**3)))
    close(run(params, x), hidden @ params["wo/kernel"])


# Vision transformer


def test_patches_are_taken_in_row_order():
    config = ViTConfig(patch_size=2, width=4, depth=0, heads=1)
    run, params = make(lambda: vit.ViT(config, 6, dtype=F32))
    x = normal(2, 6, 6, 3)
    patches = np.stack(
        [x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].reshape(2, -1) for i in range(3) for j in range(3)], 1
    )
    expected = patches @ params["embed/kernel"] + params["embed/bias"] + params["position"]
    mean, std = expected.mean(-1, keepdims=True), expected.std(-1, keepdims=True)
    close(run(params, x), (expected - mean) / std * params["norm/scale"] + params["norm/bias"], 1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 5}, "image_size 16 is not a multiple of patch_size 5"),
        ({"stem": (4, 4, 4)}, "a stem of 3 halvings does not divide patch_size 4"),
        ({"heads": 3}, "vit.width 8 is not a multiple of vit.heads 3"),
    ],
)
def test_impossible_towers(change, message):
    config = ViTConfig(**{"patch_size": 4, "width": 8, "depth": 1, "heads": 2, "mlp_width": 8} | change)
    with pytest.raises(ValueError, match=message):
        functional.abstract(lambda: vit.ViT(config, 16, dtype=F32))


# Heads


def test_heatmap_head_starts_at_its_prior():
    config = HeatmapHeadConfig(conv_widths=(8, 6), up_widths=(6, 4), prior=0.02)
    run, params = make(lambda: heads.HeatmapHead(8, 16, config, dtype=F32), noise=0.0)
    actual = np.asarray(jax.nn.sigmoid(run(params, normal(2, 4, 4, 8))))
    assert actual.shape == (2, 16, 16) and actual.std() > 0
    assert 0.015 < actual.mean() < 0.027


def test_heatmap_head_fills_the_image():
    """One stage doubles 4 to 8; the rest of the way to 16 is bilinear, so neighbours differ little."""
    config = HeatmapHeadConfig((6,), up_widths=(4,), norm="rms", residual=True, relu_before_norm=True)
    run, params = make(lambda: heads.HeatmapHead(8, 16, config, dtype=F32))
    small, small_params = make(lambda: heads.HeatmapHead(8, 8, config, dtype=F32))
    assert params.keys() == small_params.keys()
    x = normal(2, 4, 4, 8)
    actual, expected = run(params, x), jax.image.resize(small(params, x), (2, 16, 16), "bilinear")
    close(actual, expected)


def test_score_head_pools_blocks():
    config = ScoreHeadConfig(conv_widths=(), pool=2, dense_widths=())
    run, params = make(lambda: heads.ScoreHead(3, 4, config, dtype=F32))
    x = normal(2, 4, 4, 3)
    pooled = np.stack([x[:, i : i + 2, j : j + 2].mean((1, 2)) for i in (0, 2) for j in (0, 2)], 1)
    close(run(params, x), pooled.reshape(2, -1) @ params["out/kernel"][:, 0] + params["out/bias"])


def test_score_head_flattens_in_order():
    config = ScoreHeadConfig(conv_widths=(), dense_widths=(5,))
    run, params = make(lambda: heads.ScoreHead(3, 2, config, dtype=F32))
    x = normal(2, 2, 2, 3)
    hidden = np.maximum(x.reshape(2, -1) @ params["dense_0/kernel"] + params["dense_0/bias"], 0)
    close(run(params, x), hidden @ params["out/kernel"][:, 0] + params["out/bias"])


def test_impossible_score_heads():
    with pytest.raises(ValueError, match="too small for VALID padding; use SAME"):
        functional.abstract(lambda: heads.ScoreHead(3, 4, ScoreHeadConfig(padding="VALID"), dtype=F32))
    with pytest.raises(ValueError, match="pool 3 does not divide the grid of 4"):
        functional.abstract(lambda: heads.ScoreHead(3, 4, ScoreHeadConfig(pool=3), dtype=F32))
