"""Fused attention: sequences padded to legal lengths give the same, and programs for GPUs call cuDNN's kernel."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from rahf.config import LossConfig
from rahf.critic import losses
from rahf.critic.networks.build import build
from rahf.nn import functional, t5, vit
from rahf.nn.attention import attention, missing_tokens, padded_attention
from tests.helpers.model_maker import SMALLEST, fake

rng = np.random.default_rng


def heads(length, seed, dtype=np.float32, width=8):
    return jnp.asarray(rng(seed).standard_normal((2, length, 2, width), np.float32), dtype)


def inputs(queries, keys, causal=False):
    """Queries, keys, values, a padding mask with other lengths per example, and a bias."""
    mask = np.arange(keys) < np.array([[keys], [max(1, keys - 4)]])
    bias = jnp.asarray(rng(4).standard_normal((1, 2, queries, keys), np.float32))
    return heads(queries, 1), heads(keys, 2), heads(keys, 3), None if causal else jnp.asarray(mask), bias


SIZES = [(13, 13, False), (5, 19, False), (11, 11, True), (8, 16, False)]


@pytest.mark.parametrize(("queries", "keys", "causal"), SIZES)
def test_padding_to_a_legal_length_changes_nothing(queries, keys, causal):
    """The path of the fused kernel with XLA in its place: same values, same gradients, also of the bias."""
    q, k, v, mask, bias = inputs(queries, keys, causal)
    weights = jnp.asarray(rng(5).standard_normal(q.shape, np.float32))

    def run(function):
        value = lambda *x: (weights * function(*x)).sum()
        return jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2, 3)))(q, k, v, bias)

    actual = run(lambda q, k, v, bias: padded_attention(q, k, v, mask, bias, causal, 1.0, "xla"))
    expected = run(lambda q, k, v, bias: attention(q, k, v, mask=mask, bias=bias, causal=causal, scale=1.0))
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert all(np.abs(gradient).max() > 0.1 for gradient in expected[1])


def test_causal_by_hand():
    q, k, v, _, bias = inputs(4, 4)
    actual = attention(q, k, v, bias=bias, causal=True, scale=1.0)
    for b, i, h in np.ndindex(2, 4, 2):
        logits = k[b, : i + 1, h] @ q[b, i, h] + bias[0, h, i, : i + 1]
        np.testing.assert_allclose(actual[b, i, h], softmax(logits) @ v[b, : i + 1, h], rtol=1e-5, atol=1e-5)


def test_an_example_without_keys_is_finite():
    q, k, v, _, bias = inputs(5, 6)
    mask = jnp.zeros((2, 6), bool)
    run = lambda q: padded_attention(q, k, v, mask, bias, False, None, "xla").sum()
    assert np.isfinite(run(q)) and np.isfinite(jax.grad(run)(q)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, m: (q, m), "computes in bfloat16 or float16, found float32"),
        (lambda q, m: (q[..., :7].astype(jnp.bfloat16), m), "multiples of 8 up to 128, found 7"),
        (lambda q, m: (q.astype(jnp.bfloat16), m[:, None, None]), r"masks are padding \(\[B,K\]\) or causal"),
    ],
)
def test_where_the_kernel_cannot_serve(change, message):
    q, _, _, mask, _ = inputs(5, 5)
    q, mask = change(q, mask)
    with pytest.raises(ValueError, match=f"attention 'cudnn': .*{message}.*; use 'auto' or 'xla'"):
        attention(q, q, q, mask=mask, implementation="cudnn")
    assert attention(q, q, q, mask=mask).shape == q.shape
    with pytest.raises(ValueError, match="'fast': expected auto, xla or cudnn"):
        attention(q, q, q, implementation="fast")


def test_a_single_query_needs_no_kernel():
    q = heads(1, 1, jnp.bfloat16)
    k = heads(6, 2, jnp.bfloat16)
    assert attention(q, k, k, mask=jnp.ones((1, 1, 1, 6), bool), implementation="cudnn").shape == q.shape


@pytest.fixture
def pretend_gpu(monkeypatch):
    """JAX asks the machine for cuDNN while it traces; a program for a GPU can be made without one all the same."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(fused, "is_cuda_compute_capability_equal", lambda _: False)


def calls(text):
    return re.findall(r"@(__cudnn\$fmha\w+)", text)


def test_a_vision_transformer_of_577_tokens_is_fused(pretend_gpu):
    x = jax.ShapeDtypeStruct((2, 577, 16, 64), jnp.bfloat16)
    loss = lambda q, k, v: attention(q, k, v, implementation="cudnn").astype(jnp.float32).sum()
    text = jax.jit(jax.grad(loss, (0, 1, 2))).trace(x, x, x).lower(lowering_platforms=("cuda",)).as_text()
    assert calls(text) == ["__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"]
    assert "tensor<2x584x16x64xbf16>" in text and r"mask_type\22: \22PADDING" in text
    assert not re.search(r"tensor<2x16x58\dx58\dx", text)  # no matrix of all queries and keys


def test_a_training_step_for_a_gpu_is_fused(pretend_gpu):
    """ViT, fusion stack with relative bias and padding, causal decoder with cross-attention: each once, and back."""
    config = dataclasses.replace(SMALLEST, compute_dtype="bfloat16", attention="cudnn")
    graphdef, params = functional.abstract(build(config))

    def loss(params, batch):
        return losses.total(LossConfig(), functional.merge(graphdef, params)(batch), batch)[0]

    text = jax.jit(jax.grad(loss)).trace(params, fake()).lower(lowering_platforms=("cuda",)).as_text()
    kernels = calls(text)
    assert sorted(set(kernels)) == [
        "__cudnn$fmhaScaleBiasSoftmax",
        "__cudnn$fmhaScaleBiasSoftmaxBackward",
        "__cudnn$fmhaSoftmax",
        "__cudnn$fmhaSoftmaxBackward",
    ]
    assert len(kernels) == 2 * (1 + 1 + 2)
    assert len(re.findall(r"mask_type\\22: \\22CAUSAL|mask_type\\22: \\22PADDING_CAUSAL", text)) == 2
    # T5's logits are not scaled, the vision transformer's are.
    assert len(re.findall(r"fmha_scale\\22: 1.0", text)) == 2 * 3


def test_tokens_appended_once_to_a_stack_change_nothing(monkeypatch):
    """Image tower and fusion stack with as many masked tokens as the fused kernel would want."""
    graphdef, _ = functional.abstract(build(SMALLEST))
    params = functional.init(build(SMALLEST), 0)

    def loss(params, batch):
        logits = functional.merge(graphdef, params)(batch)
        return losses.total(LossConfig(), logits, batch)[0], logits

    run = lambda: jax.jit(jax.value_and_grad(loss, has_aux=True))(params, fake())
    expected = run()
    for module in (vit, t5):
        monkeypatch.setattr(module, "missing_tokens", lambda tokens, *_: -tokens % 8 + 8)
    for a, b in zip(jax.tree.leaves(run()), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


def test_a_stack_appends_tokens_where_the_fused_kernel_serves():
    """Once, in the place of padding in each layer: for its multiples, dtypes, heads and more than one query only."""
    assert missing_tokens(577, 64, "bfloat16", "cudnn") == 7
    for tokens, width, dtype, kind in (
        (576, 64, "bfloat16", "cudnn"), (577, 64, "float32", "cudnn"), (577, 60, "bfloat16", "cudnn"),
        (1, 64, "bfloat16", "cudnn"), (577, 64, "bfloat16", "xla"), (577, 64, "bfloat16", "auto"),
    ):  # fmt: skip
        assert missing_tokens(tokens, width, dtype, kind) == 0
