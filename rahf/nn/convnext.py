"""ConvNeXt (Liu et al. 2022): 7x7 depthwise convolution, layer normalization, two dense layers, layer scale."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rahf.config import ConvNextConfig
from rahf.core.errors import ConfigError
from rahf.nn import gradients, layers
from rahf.nn.depthwise import depthwise

#: Channels inside a block per channel at its input, and the side of its depthwise kernel, as published.
EXPANSION, KERNEL = 4, 7
_NORM_EPS = 1e-6


class Patches(nnx.Module):
    """A convolution whose stride is its size, with bias; kernel [size, size, inputs, outputs]."""

    def __init__(self, inputs: int, outputs: int, size: int, *, dtype: jnp.dtype):
        self.kernel = layers.parameter(size, size, inputs, outputs, std=(size * size * inputs) ** -0.5)
        self.bias = layers.parameter(outputs)
        self.size, self.dtype = size, dtype

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h2 w2 o"]:
        kernel = self.kernel[...].astype(self.dtype)
        # Pixels behind the last whole patch are not seen, as in PyTorch.
        y = gradients.convolution(x.astype(self.dtype), kernel, self.size, "VALID")
        return y + layers.spread(self.bias[...], y)


class Block(nnx.Module):
    """x + scale · dense(gelu(dense(norm(depthwise(x)))))."""

    def __init__(self, width: int, layer_scale: bool, *, dtype: jnp.dtype):
        self.kernel = layers.parameter(KERNEL, KERNEL, width, std=1.0 / KERNEL)
        self.bias = layers.parameter(width)
        self.norm = layers.LayerNorm(width, eps=_NORM_EPS, dtype=dtype)
        inner = EXPANSION * width
        self.wi = layers.Linear(width, inner, bias=True, std=width**-0.5, dtype=dtype)
        self.wo = layers.Linear(inner, width, bias=True, std=inner**-0.5, dtype=dtype)
        if layer_scale:
            self.scale = layers.parameter(width, fill=1e-6)  # as published: a block starts close to the identity
        self.layer_scale, self.dtype = layer_scale, dtype

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        y = depthwise(x, self.kernel[...].astype(self.dtype), padding=(KERNEL // 2, KERNEL // 2))
        y = self.norm(y + layers.spread(self.bias[...], y))
        y = self.wo(jax.nn.gelu(self.wi(y), approximate=False))
        return x + (y * layers.spread(self.scale[...], y) if self.layer_scale else y)


class ConvNext(nnx.Module):
    """Normalised images → one map per stage, finest first: strides 4, 8, 16, 32 with patches of 4 pixels."""

    def __init__(self, config: ConvNextConfig, *, dtype: jnp.dtype):
        if len(config.widths) != len(config.depths):
            raise ConfigError(f"model.convnext: {len(config.widths)} widths but {len(config.depths)} depths")
        self.config, inputs = config, 3
        for stage, (width, depth) in enumerate(zip(config.widths, config.depths)):
            if stage:
                setattr(self, f"norm_{stage}", layers.LayerNorm(inputs, eps=_NORM_EPS, dtype=dtype))
            size = 2 if stage else config.patch_size
            setattr(self, f"patches_{stage}", Patches(inputs, width, size, dtype=dtype))
            if not stage:
                self.norm_0 = layers.LayerNorm(width, eps=_NORM_EPS, dtype=dtype)
            for number in range(depth):
                setattr(self, f"stage_{stage}_{number}", Block(width, config.layer_scale, dtype=dtype))
            inputs = width

    def maps(self, image: Float[Array, "b s s 3"]) -> tuple[Float[Array, "b h w c"], ...]:
        """The output of every stage."""
        x, maps = image, []
        for stage, depth in enumerate(self.config.depths):
            norm, patches = getattr(self, f"norm_{stage}"), getattr(self, f"patches_{stage}")
            x = patches(norm(x)) if stage else norm(patches(x))
            for number in range(depth):
                x = getattr(self, f"stage_{stage}_{number}")(x)
            maps.append(x)
        return tuple(maps)

    def __call__(self, image: Float[Array, "b s s 3"]) -> Float[Array, "b h w c"]:
        """The coarsest map."""
        return self.maps(image)[-1]
