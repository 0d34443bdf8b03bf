"""Building blocks shared by the towers and heads. Parameters float32, compute in a chosen dtype."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rahf.nn import gradients

Key = jax.Array | None  # of dropout; None: no dropout


def parameter(*shape: int, std: float = 0.0, fill: float = 0.0) -> nnx.Param:
    """A float32 parameter that starts as fill + std · (standard normal); `functional.init` draws it."""
    return nnx.Param(jnp.full(shape, fill, jnp.float32), std=float(std), fill=float(fill))


def spread(vector: jax.Array, like: jax.Array) -> jax.Array:
    """A float32 parameter, broadcast to the shape of `like` and then cast to its dtype.

    In this order its gradient is a sum over all rows in float32. Cast first, it would be a sum in bfloat16: with 8 bits
    of precision it stops growing after a few hundred terms, and biases and scales would hardly be trained. The values
    are the same.
    """
    return jnp.broadcast_to(vector, like.shape).astype(like.dtype)


class Linear(nnx.Module):
    """A dense layer on the last axis, kernel [inputs, outputs]."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool, std: float, dtype: jnp.dtype):
        self.kernel = parameter(inputs, outputs, std=std)
        if bias:
            self.bias = parameter(outputs)
        self.use_bias, self.dtype = bias, dtype

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        y = gradients.product(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return y + spread(self.bias[...], y) if self.use_bias else y


def dropout(x: jax.Array, rate: float, key: Key) -> jax.Array:
    """Inverted dropout; the identity when `key` is None or the rate is 0."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


def subkey(key: Key, number: int | jax.Array) -> Key:
    """An independent key for the use of this number; None if `key` is None."""
    return None if key is None else jax.random.fold_in(key, number)


class RMSNorm(nnx.Module):
    """x · rsqrt(mean(x²) + eps) · scale over the last axis, statistics in float32 (T5; Zhang & Sennrich 2019)."""

    def __init__(self, width: int, *, eps: float = 1e-6, dtype: jnp.dtype = jnp.dtype("float32")):
        self.scale = parameter(width, fill=1.0)
        self.eps, self.dtype = eps, dtype

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + self.eps)
        return (x * self.scale[...]).astype(self.dtype)


class LayerNorm(nnx.Module):
    """Layer normalization over the last axis, statistics in float32."""

    def __init__(self, width: int, *, eps: float = 1e-6, dtype: jnp.dtype = jnp.dtype("float32")):
        self.scale, self.bias = parameter(width, fill=1.0), parameter(width)
        self.eps, self.dtype = eps, dtype

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        normed = gradients.layer_norm(x.astype(jnp.float32), self.scale[...], self.bias[...], self.eps)
        return normed.astype(self.dtype)


def channel_norm(kind: str, width: int, dtype: jnp.dtype) -> nnx.Module:
    """The norm of the heads: "layer" (paper) or "rms" without bias, eps 1e-8 (public PyTorch port)."""
    if kind == "layer":
        return LayerNorm(width, dtype=dtype)
    return RMSNorm(width, eps=1e-8, dtype=dtype)


class Conv3x3(nnx.Module):
    """A convolution that keeps the side (3x3 by default), kernel [k,k,inputs,outputs].

    `padding` is "SAME" or "VALID", or the numbers of zeros before and after the rows and the columns.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        size: int = 3,
        stride: int = 1,
        padding: str | tuple[tuple[int, int], tuple[int, int]] = "SAME",
        bias: bool = True,
        dtype: jnp.dtype,
        gain: float = 1.0,
        fill: float = 0.0,
    ):
        std = (2.0 / (size * size * inputs)) ** 0.5  # He et al. 2015: every use is followed by a ReLU
        self.kernel = parameter(size, size, inputs, outputs, std=gain * std)
        if bias:
            self.bias = parameter(outputs, fill=fill)
        self.stride, self.padding, self.use_bias, self.dtype = stride, padding, bias, dtype

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 o"]:
        kernel = self.kernel[...].astype(self.dtype)
        y = gradients.convolution(x.astype(self.dtype), kernel, self.stride, self.padding)
        return y + spread(self.bias[...], y) if self.use_bias else y


class Numbered(nnx.Module):
    """A list of modules whose parameters are called by their numbers, as in PyTorch: ``blocks/0/...``."""

    def __init__(self, modules: Iterable[nnx.Module | None]):
        """Builds from modules; None leaves its number out."""
        numbers = []
        for number, module in enumerate(modules):
            if module is not None:
                setattr(self, str(number), module)
                numbers.append(number)
        self.numbers = tuple(numbers)

    def __iter__(self) -> Iterator[nnx.Module]:
        return (getattr(self, str(number)) for number in self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: int) -> nnx.Module:
        return getattr(self, str(number))


class UpConv3x3(nnx.Module):
    """Transposed 3x3 convolution with stride 2, output exactly twice as large, kernel [3,3,inputs,outputs].

    As PyTorch's with `padding=1, output_padding=1`: output pixel 2i+k-1 receives input i through tap k. It is computed
    as a 2x2 convolution to 4·C channels and a rearrangement (sub-pixel form), because convolutions with dilated input
    are slow on most devices. The parameters are those of the transposed convolution.
    """

    def __init__(self, inputs: int, outputs: int, *, dtype: jnp.dtype):
        std = (2.0 / (9 / 4 * inputs)) ** 0.5  # on average 9/4 taps reach an output pixel
        self.kernel = parameter(3, 3, inputs, outputs, std=std)
        self.bias = parameter(outputs)
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w o"]:
        b, h, w, _ = x.shape
        kernel = self.kernel[...].astype(self.dtype)
        outputs = kernel.shape[-1]
        # Even outputs see tap 1 of pixel m; odd ones tap 2 of pixel m and tap 0 of pixel m+1.
        none = jnp.zeros_like(kernel[0])
        rows = jnp.stack([jnp.stack([kernel[1], kernel[2]]), jnp.stack([none, kernel[0]])])  # [2, parity, 3, c, o]
        taps = rows[:, :, 1], rows[:, :, 2], rows[:, :, 0]
        left = jnp.stack([taps[0], taps[1]], 2)  # [2, parity_y, parity_x, c, o]
        right = jnp.stack([jnp.zeros_like(taps[0]), taps[2]], 2)
        small = jnp.stack([left, right], 1)  # [2, 2, parity_y, parity_x, c, o]
        small = small.transpose(0, 1, 4, 2, 3, 5).reshape(2, 2, kernel.shape[2], 4 * outputs)
        y = gradients.convolution(x.astype(self.dtype), small, padding=((0, 1), (0, 1)))
        y = y.reshape(b, h, w, 2, 2, outputs).transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, outputs)
        return y + spread(self.bias[...], y)
