"""Gradients in the order of operations that XLA's CPU backend computes fast; elsewhere JAX's own.

Kept by hand for speed: without it the demo's training step on a CPU is slower than PyTorch's (docs/benchmarks.md, "The
training step").

The values are those of automatic differentiation but for the order of summation. GPUs and TPUs multiply transposed
matrices as fast as others, so they get JAX's own gradients. So does everything but training, and the
convolutions of guided sampling: these gradients have no forward mode, but a critic must allow all of JAX's
transformations and be exported for devices of other kinds.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

#: Zeros before and after rows, and before and after columns.
Pads = tuple[tuple[int, int], tuple[int, int]]

_training = contextvars.ContextVar("training", default=False)
_guidance = contextvars.ContextVar("guidance", default=False)


@contextlib.contextmanager
def of_training() -> Iterator[None]:
    """While this is active, JAX traces a training step, which is differentiated once in reverse."""
    token = _training.set(True)
    try:
        yield
    finally:
        _training.reset(token)


@contextlib.contextmanager
def of_guidance() -> Iterator[None]:
    """While this is active, JAX traces a step of sampling that is differentiated once in reverse, such as guidance.

    Only convolutions get other gradients, whose values are the same to the last bit: sampling is reproducible.
    """
    token = _guidance.set(True)
    try:
        yield
    finally:
        _guidance.reset(token)


def reordered() -> bool:
    """Whether JAX is tracing a training step for a CPU."""
    return _training.get() and jax.default_backend() == "cpu"


def product(x: Float[Array, "*b i"], kernel: Float[Array, "i o"], out: Any = None) -> Float[Array, "*b o"]:
    """x times a kernel, in their dtype or in the dtype `out`.

    The kernel's gradient is a product that contracts the rows of both factors. XLA's CPU backend computes such a
    product up to three times more slowly than a plain one, so the gradient transposes the narrower factor first.
    """
    if reordered() and x.dtype == kernel.dtype == jnp.float32:
        return _product(x, kernel)
    return jnp.dot(x, kernel, preferred_element_type=out)


@jax.custom_vjp
def _product(x, kernel):
    return jnp.dot(x, kernel)


def _product_forward(x, kernel):
    return jnp.dot(x, kernel), (x, kernel)


def _product_backward(kept, gradient):
    x, kernel = kept
    rows, of_rows = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    hold = jax.lax.optimization_barrier  # or else the compiler moves the transpositions back into the product
    if rows.shape[1] <= of_rows.shape[1]:
        of_kernel = hold(jnp.dot(hold(rows.T), of_rows))
    else:
        of_kernel = hold(jnp.dot(hold(of_rows.T), rows)).T
    return jnp.dot(gradient, kernel.T), of_kernel


_product.defvjp(_product_forward, _product_backward)


def convolution(
    x: Float[Array, "b h w i"],
    kernel: Float[Array, "kh kw i o"],
    stride: int | tuple[int, int] = 1,
    padding: str | Pads = "SAME",
) -> Float[Array, "b h2 w2 o"]:
    """A convolution over rows and columns, in the dtype of both.

    XLA's CPU backend has kernels for one order of axes. It brings a convolution of another order, as those of a
    gradient are, into this one, but only outside of loops: in the body of a scan, such as that of gradient accumulation
    or of a sampled trajectory, the gradients took 20 to 60 times as long. Here they stand in that order from the start.

    Args:
      x: maps.
      kernel: filters.
      stride: of rows and columns.
      padding: "SAME", "VALID", or the numbers of zeros before and after rows and columns.
    """
    strides = (stride, stride) if isinstance(stride, int) else stride
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    pads = tuple((int(before), int(after)) for before, after in padding)
    inside = all(max(pad) < size for pad, size in zip(pads, kernel.shape))
    own = jax.default_backend() == "cpu" and (_training.get() or _guidance.get())
    if own and inside and x.dtype == kernel.dtype == jnp.float32:
        return _convolution(x, kernel, strides, pads)
    return _convolved(x, kernel, strides, pads)


def _convolved(x, kernel, strides, pads, dilation=(1, 1)):
    return jax.lax.conv_general_dilated(
        x, kernel, strides, pads, rhs_dilation=dilation, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolution(x, kernel, strides, pads):
    return _convolved(x, kernel, strides, pads)


def _convolution_forward(x, kernel, strides, pads):
    return _convolved(x, kernel, strides, pads), (x, kernel)


def _convolution_backward(strides, pads, kept, gradient):
    x, kernel = kept
    hold = jax.lax.optimization_barrier  # or else the compiler folds the transpositions into the convolutions
    sides, sizes = x.shape[1:3], kernel.shape[:2]
    reach = [stride * (side - 1) for stride, side in zip(strides, gradient.shape[1:3])]  # of the last output
    # Of the kernel: maps as filters over maps, examples as channels. Pixels that no output reaches are cut off.
    ends = [size + far - side - before for size, far, side, (before, _) in zip(sizes, reach, sides, pads)]
    rows, columns = (side + min(end, 0) for side, end in zip(sides, ends))
    maps, filters = hold((x[:, :rows, :columns].transpose(3, 1, 2, 0), gradient.transpose(1, 2, 0, 3)))
    around = [(before, max(end, 0)) for (before, _), end in zip(pads, ends)]
    of_kernel = _convolved(maps, filters, (1, 1), around, strides).transpose(1, 2, 0, 3)
    # Of x: the turned kernel over gradients with zeros between them.
    zero = jnp.zeros((), gradient.dtype)
    spread = jax.lax.pad(gradient, zero, [(0, 0, 0), *((0, 0, stride - 1) for stride in strides), (0, 0, 0)])
    around = [
        (size - 1 - before, side - 1 - far + before) for size, side, far, (before, _) in zip(sizes, sides, reach, pads)
    ]
    of_x = _convolved(spread, hold(kernel[::-1, ::-1].swapaxes(2, 3)), (1, 1), around)
    return of_x, of_kernel


_convolution.defvjp(_convolution_forward, _convolution_backward)


def layer_norm(
    x: Float[Array, "*b d"], scale: Float[Array, " d"], bias: Float[Array, " d"], eps: float
) -> Float[Array, "*b d"]:
    """Layer normalization over the last axis, in the dtype of x.

    The two sums over channels in its gradient (Ba et al. 2016, appendix) are computed as products with a vector that
    contains the scale. Otherwise XLA's CPU backend writes the scale out at full size to sum many short rows.
    """
    return _layer_norm(x, scale, bias, eps) if reordered() else _layer_norm_forward(x, scale, bias, eps)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_norm(x, scale, bias, eps):
    return _layer_norm_forward(x, scale, bias, eps)[0]


def _layer_norm_forward(x, scale, bias, eps):
    x = x - jnp.mean(x, -1, keepdims=True)
    per_deviation = jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + eps)
    normed = x * per_deviation
    return normed * scale + bias, (normed, per_deviation, scale)


def _layer_norm_backward(eps, kept, gradient):
    normed, per_deviation, scale = kept
    of_scale = gradient * normed
    mean = scale / scale.size
    common = jnp.dot(gradient, mean)[..., None] + normed * jnp.dot(of_scale, mean)[..., None]
    of_x = per_deviation * (gradient * scale - common)
    rows = tuple(range(gradient.ndim - 1))
    return of_x, of_scale.sum(rows), gradient.sum(rows)


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def dot_product_attention(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k h d"],
    value: Float[Array, "b k h d"],
    bias: Float[Array, "#b h q k"] | None,
    mask: Bool[Array, "#b #h #q k"] | None,
    scale: float,
) -> Float[Array, "b q h d"]:
    """`jax.nn.dot_product_attention`, logits and softmax in float32, with a gradient in few passes.

    The gradient of the logits is p · (dp - Σ o · do) (Dao et al. 2022, FlashAttention, appendix B), whose sum runs over
    a head's width instead of all keys. The gradient of a bias that all examples share is summed over the batch by a
    product: the compiler's own sum takes 20 times as long when two threads share it.
    """
    query = query if scale == 1.0 else query * jnp.asarray(scale, query.dtype)
    return _attention(query, key, value, bias, mask)


@jax.custom_vjp
def _attention(query, key, value, bias, mask):
    return _attention_forward(query, key, value, bias, mask)[0]


def _attention_forward(query, key, value, bias, mask):
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias.astype(logits.dtype)
    if mask is not None:
        logits = jnp.where(mask, logits, -0.7 * jnp.finfo(logits.dtype).max)
    weights = jax.nn.softmax(logits).astype(key.dtype)
    out = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
    return out, (query, key, value, bias, mask, weights, out)


def _attention_backward(kept, gradient):
    query, key, value, bias, mask, weights, out = kept
    of_value = jnp.einsum("bhqk,bqhd->bkhd", weights, gradient)
    of_weights = jnp.einsum("bqhd,bkhd->bhqk", gradient, value, preferred_element_type=jnp.float32)
    mean = jnp.einsum("bqhd,bqhd->bhq", gradient, out, preferred_element_type=jnp.float32)
    of_logits = weights * (of_weights - mean[..., None])
    if mask is not None:  # of an example whose keys are all masked, the weights are not zero
        of_logits = jnp.where(mask, of_logits, 0.0)
    # Without the barrier each of the products below computes it again.
    of_logits = jax.lax.optimization_barrier(of_logits)
    of_bias = None if bias is None else _summed(of_logits, bias.shape[0]).astype(bias.dtype)
    of_logits = of_logits.astype(key.dtype)
    of_query = jnp.einsum("bhqk,bkhd->bqhd", of_logits, key)
    of_key = jnp.einsum("bhqk,bqhd->bkhd", of_logits, query)
    return of_query, of_key, of_value, of_bias, None


def _summed(x: Float[Array, "b h q k"], size: int) -> Float[Array, "#b h q k"]:
    """The sum over the batch if `size` is 1, else x."""
    if size == x.shape[0]:
        return x
    return jnp.dot(jnp.ones((1, x.shape[0]), x.dtype), x.reshape(x.shape[0], -1)).reshape(1, *x.shape[1:])


_attention.defvjp(_attention_forward, _attention_backward)
