"""Multi-head attention: cuDNN's fused kernel where it can serve, XLA elsewhere, with the same results.

The fused kernel never writes the [queries, keys] matrix. It takes float16 and bfloat16, heads whose width is a multiple
of 8, and for gradients even lengths only. A vision transformer with a class token has 577 tokens. Sequences are
therefore padded, and the kernel is told their true lengths.
"""

from __future__ import annotations

import jax
import jax.extend.backend
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rahf.core.errors import ConfigError
from rahf.nn import gradients

#: Padded lengths are multiples of this: the kernel takes them, and rows of a bias stay aligned to 16 bytes.
_MULTIPLE = 8
_WIDEST_HEAD = 128  # the kernel takes it on every supported GPU


def attention(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k h d"],
    value: Float[Array, "b k h d"],
    *,
    mask: Bool[Array, "b k"] | Bool[Array, "#b #h #q k"] | None = None,
    bias: Float[Array, "#b h q k"] | None = None,
    causal: bool = False,
    scale: float | None = None,
    implementation: str = "auto",
) -> Float[Array, "b q h d"]:
    """Multi-head attention, logits and softmax in float32.

    Args:
      mask: True where a query may attend to a key. A mask [B,K] is padding: True for the first keys of each example,
        False for the rest. The fused kernel then needs only the number of keys.
      bias: added to the logits; it may be learned: gradients reach it.
      causal: query i sees keys up to i only.
      scale: of the logits; None is d**-0.5, T5 uses 1.
      implementation: "auto" (cuDNN if the default device is an NVIDIA GPU and its kernel takes these inputs), "xla",
        or "cudnn".

    Returns:
      [B,Q,H,D] in the dtype of `query`.

    Raises:
      ConfigError: "cudnn" for inputs that its kernel does not take (a single query, as in decoding, is computed by
        XLA), or another implementation.
    """
    if implementation not in ("auto", "xla", "cudnn"):
        raise ConfigError(f"attention {implementation!r}: expected auto, xla or cudnn")
    if implementation == "cudnn" or (implementation == "auto" and _on_nvidia()):
        obstacle = _obstacle(query.dtype, query.shape[-1], query.shape[1], mask)
        if not obstacle:
            return padded_attention(query, key, value, mask, bias, causal, scale, "cudnn")
        # A single query, as in decoding, has no [queries, keys] matrix to avoid.
        if implementation == "cudnn" and query.shape[1] > 1:
            raise ConfigError(f"attention 'cudnn': {obstacle}; use 'auto' or 'xla'")
    if mask is not None and mask.ndim == 2:
        mask = mask[:, None, None, :]
    if gradients.reordered():
        if causal:
            earlier = jnp.tril(jnp.ones((query.shape[1], key.shape[1]), bool))
            mask = earlier if mask is None else mask & earlier
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        return gradients.dot_product_attention(query, key, value, bias, mask, scale)
    return jax.nn.dot_product_attention(query, key, value, bias, mask, is_causal=causal, scale=scale)


def missing_tokens(tokens: int, head_width: int, dtype: jnp.dtype, implementation: str) -> int:
    """How many tokens a stack of layers appends to its sequence, once, so that no layer need do so for `attention`.

    They must be masked as keys. 0 where the fused kernel does not serve. On an H200 padding 577 tokens in each of the
    layers and cutting the results took 12 of 500 ms of a step of ViT-L with T5-base.
    """
    fused = implementation == "cudnn" or (implementation == "auto" and _on_nvidia())
    return -tokens % _MULTIPLE if fused and not _obstacle(jnp.dtype(dtype), head_width, tokens, None) else 0


def _obstacle(dtype: jnp.dtype, head_width: int, queries: int, mask: jax.Array | None) -> str:
    """Why the fused kernel does not take these inputs; empty if it does."""
    if queries == 1:
        return "there is a single query, as in decoding"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"its kernel computes in bfloat16 or float16, found {dtype}"
    if head_width % 8 or head_width > _WIDEST_HEAD:
        return f"its heads have widths of multiples of 8 up to {_WIDEST_HEAD}, found {head_width}"
    if mask is not None and mask.ndim != 2:
        return "its masks are padding ([B,K]) or causal"
    return ""


def _on_nvidia() -> bool:
    return jax.default_backend() == "gpu" and "cuda" in jax.extend.backend.get_backend().platform_version.lower()


def padded_attention(query, key, value, mask, bias, causal, scale, implementation):
    """`attention` over sequences padded to lengths that the fused kernel takes, with their true lengths.

    Arguments and result as of `attention`, with `mask` [B,K] or None. `implementation` is "cudnn", or "xla" to compare
    with on any device.
    """
    b, queries, keys = query.shape[0], query.shape[1], key.shape[1]
    more_queries, more_keys = -queries % _MULTIPLE, -keys % _MULTIPLE
    lengths = {}
    if mask is not None or more_queries or more_keys:
        # An example without any key gives NaN, which would spread through gradients even from padded examples.
        key_lengths = jnp.full(b, keys, jnp.int32) if mask is None else jnp.maximum(mask.sum(-1, dtype=jnp.int32), 1)
        lengths = dict(query_seq_lengths=jnp.full(b, queries, jnp.int32), key_value_seq_lengths=key_lengths)
    if bias is not None:
        bias = jnp.pad(bias.astype(query.dtype), ((0, 0), (0, 0), (0, more_queries), (0, more_keys)))
    pad = lambda x, more: jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0)))
    out = jax.nn.dot_product_attention(
        pad(query, more_queries),
        pad(key, more_keys),
        pad(value, more_keys),
        bias,
        is_causal=causal,
        scale=scale,
        implementation=implementation,
        **lengths,
    )
    return out[:, :queries]
