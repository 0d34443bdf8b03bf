"""EfficientNet-Lite: inverted bottlenecks without squeeze and excitation, ReLU6 (Tan & Le 2019; Google's Lite variant).

Batch-norm statistics are frozen and folded into scale and bias of each channel; see `rahf.nn.resnet.ConvAffine`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rahf.config import EfficientNetConfig
from rahf.core.errors import ConfigError
from rahf.nn import gradients, layers
from rahf.nn.depthwise import depthwise

#: Of each stage: side of its depthwise kernels, stride of its first block, channels inside per channel at its input.
KERNELS, STRIDES, EXPANSIONS = (3, 3, 5, 3, 5, 5, 3), (1, 2, 2, 2, 1, 2, 1), (1, 6, 6, 6, 6, 6, 6)


def check(config: EfficientNetConfig) -> None:
    """Raises ConfigError unless the config has EfficientNet's seven stages."""
    for name in ("widths", "depths"):
        stages = len(getattr(config, name))
        if stages != len(STRIDES):
            raise ConfigError(f"model.efficientnet.{name}: expected {len(STRIDES)} stages, found {stages}")


class PointwiseAffine(nnx.Module):
    """A 1x1 convolution without bias, then scale and bias of each channel; kernel [inputs, outputs]."""

    def __init__(self, inputs: int, outputs: int, *, scale: float = 1.0, dtype: jnp.dtype):
        self.kernel = layers.parameter(inputs, outputs, std=(2.0 / inputs) ** 0.5)
        self.scale, self.bias = layers.parameter(outputs, fill=scale), layers.parameter(outputs)
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h w o"]:
        y = gradients.product(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return y * layers.spread(self.scale[...], y) + layers.spread(self.bias[...], y)


class DepthwiseAffine(nnx.Module):
    """A depthwise convolution without bias, then scale and bias of each channel; kernel [k, k, channels]."""

    def __init__(self, width: int, size: int, stride: int, *, dtype: jnp.dtype):
        self.kernel = layers.parameter(size, size, width, std=(2.0 / size**2) ** 0.5)
        self.scale, self.bias = layers.parameter(width, fill=1.0), layers.parameter(width)
        self.stride, self.dtype = stride, dtype

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        y = depthwise(x.astype(self.dtype), self.kernel[...].astype(self.dtype), self.stride)
        return y * layers.spread(self.scale[...], y) + layers.spread(self.bias[...], y)


class StemAffine(nnx.Module):
    """The 3x3 convolution with stride 2 that sees the image; kernel [3, 3, 3, outputs]."""

    def __init__(self, outputs: int, *, dtype: jnp.dtype):
        self.kernel = layers.parameter(3, 3, 3, outputs, std=(2.0 / 27) ** 0.5)
        self.scale, self.bias = layers.parameter(outputs, fill=1.0), layers.parameter(outputs)
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 o"]:
        kernel = self.kernel[...].astype(self.dtype)
        y = gradients.convolution(x.astype(self.dtype), kernel, stride=2)
        return y * layers.spread(self.scale[...], y) + layers.spread(self.bias[...], y)


class InvertedBottleneck(nnx.Module):
    """1x1 to more channels, depthwise, 1x1 to few; added to the input where the shapes are the same."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int, expansion: int, *, dtype: jnp.dtype):
        inner = inputs * expansion
        self.expands, self.adds = expansion != 1, stride == 1 and inputs == outputs
        if self.expands:
            self.expand = PointwiseAffine(inputs, inner, dtype=dtype)
        self.depthwise = DepthwiseAffine(inner, size, stride, dtype=dtype)
        # As in `rahf.nn.resnet.Bottleneck`: a block that is added starts as the identity.
        self.project = PointwiseAffine(inner, outputs, scale=0.0 if self.adds else 1.0, dtype=dtype)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 o"]:
        y = jax.nn.relu6(self.expand(x)) if self.expands else x
        y = self.project(jax.nn.relu6(self.depthwise(y)))
        return x + y if self.adds else y


class EfficientNet(nnx.Module):
    """Normalised images → one map per resolution, finest first; the convolution before the classifier is left out."""

    def __init__(self, config: EfficientNetConfig, *, dtype: jnp.dtype):
        check(config)
        self.config = config
        self.stem = StemAffine(config.stem_width, dtype=dtype)
        inputs = config.stem_width
        for stage, (outputs, depth) in enumerate(zip(config.widths, config.depths)):
            for number in range(depth):
                stride = 1 if number else STRIDES[stage]
                block = InvertedBottleneck(inputs, outputs, KERNELS[stage], stride, EXPANSIONS[stage], dtype=dtype)
                setattr(self, f"stage_{stage}_{number}", block)
                inputs = outputs

    def maps(self, image: Float[Array, "b s t 3"]) -> tuple[Float[Array, "b h w c"], ...]:
        """The maps of strides 2, 4, 8, 16 and 32, each the output of the last stage of its resolution."""
        return self.maps_from(self.maps_until(image, 0), 0)

    def maps_until(self, image: Float[Array, "b s t 3"], stage: int) -> tuple[Float[Array, "b h w c"], ...]:
        """The finished maps in front of a stage, finest first, and last what the stage takes; see `maps_from`."""
        return self._run(jax.nn.relu6(self.stem(image)), (), 0, stage)

    def maps_from(self, maps: tuple[Float[Array, "b h w c"], ...], stage: int) -> tuple[Float[Array, "b h w c"], ...]:
        """The maps of all resolutions, from what `maps_until` gave for the same stage.

        Finer maps may be left out of `maps`; they are then missing here, too.
        """
        return self._run(maps[-1], tuple(maps[:-1]), stage, len(self.config.depths))

    def _run(self, x: Any, maps: tuple[Any, ...], first: int, last: int) -> tuple[Any, ...]:
        for stage in range(first, last):
            if STRIDES[stage] == 2:
                maps = (*maps, x)
            for number in range(self.config.depths[stage]):
                x = getattr(self, f"stage_{stage}_{number}")(x)
        return (*maps, x)

    def __call__(self, image: Float[Array, "b s s 3"]) -> Float[Array, "b h w c"]:
        """The coarsest map."""
        return self.maps(image)[-1]


def map_widths(config: EfficientNetConfig) -> tuple[int, ...]:
    """Channels of the maps of strides 2, 4, 8, 16 and 32. Raises ConfigError as `check`."""
    check(config)
    last = [stage - 1 for stage, stride in enumerate(STRIDES) if stride == 2] + [len(STRIDES) - 1]
    return tuple(config.widths[stage] for stage in last)
