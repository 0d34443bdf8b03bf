"""ResNet with bottlenecks (He et al. 2016); batch-norm statistics are frozen and folded into affine maps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rahf.config import ResNetConfig
from rahf.core.errors import ConfigError
from rahf.nn import gradients, layers

#: Channels of a stage's output per channel of its 3x3 convolutions.
EXPANSION = 4


class ConvAffine(nnx.Module):
    """A convolution without bias, then scale and bias of each channel.

    Batch normalization with frozen statistics: γ (x - μ) / √(σ² + ε) + β is scale γ / √(σ² + ε) and bias
    β - scale · μ. Published kernels are unchanged; scale and bias are trained like any other parameter. Running
    statistics would be a state beside the parameters. Statistics of the batch would make the prediction for one image
    depend on the other images and on their distribution over devices.
    """

    def __init__(self, inputs: int, outputs: int, size: int, *, stride: int = 1, scale: float = 1.0, dtype: jnp.dtype):
        self.kernel = layers.parameter(size, size, inputs, outputs, std=(2.0 / (size * size * inputs)) ** 0.5)
        self.scale, self.bias = layers.parameter(outputs, fill=scale), layers.parameter(outputs)
        self.size, self.stride, self.dtype = size, stride, dtype

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 o"]:
        edge = (self.size // 2, self.size // 2)  # on both sides as in PyTorch; "SAME" would shift with stride 2
        kernel = self.kernel[...].astype(self.dtype)
        y = gradients.convolution(x.astype(self.dtype), kernel, self.stride, (edge, edge))
        return y * layers.spread(self.scale[...], y) + layers.spread(self.bias[...], y)


class Bottleneck(nnx.Module):
    """1x1, 3x3 with the stride, 1x1; added to the input, or to its projection where shapes differ."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, dtype: jnp.dtype):
        inner = outputs // EXPANSION
        self.conv1 = ConvAffine(inputs, inner, 1, dtype=dtype)
        self.conv2 = ConvAffine(inner, inner, 3, stride=stride, dtype=dtype)
        # A deep network without batch statistics trains from random parameters only if every block starts as the
        # identity (De & Smith 2020, SkipInit).
        self.conv3 = ConvAffine(inner, outputs, 1, scale=0.0, dtype=dtype)
        self.projects = stride != 1 or inputs != outputs
        if self.projects:
            self.shortcut = ConvAffine(inputs, outputs, 1, stride=stride, dtype=dtype)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 o"]:
        y = jax.nn.relu(self.conv1(x))
        y = self.conv3(jax.nn.relu(self.conv2(y)))
        return jax.nn.relu(y + (self.shortcut(x) if self.projects else x))


class ResNet(nnx.Module):
    """Normalised images → feature map at 1 / 4 · 1 / 2^(stages - 1) of their side."""

    def __init__(self, config: ResNetConfig, *, dtype: jnp.dtype):
        if len(config.widths) != len(config.depths):
            raise ConfigError(f"model.resnet: {len(config.widths)} widths but {len(config.depths)} depths")
        self.config = config
        self.stem = ConvAffine(3, config.stem_width, 7, stride=2, dtype=dtype)
        inputs = config.stem_width
        for stage, (outputs, depth) in enumerate(zip(config.widths, config.depths)):
            for number in range(depth):
                stride = 2 if stage and not number else 1
                setattr(self, f"stage_{stage}_{number}", Bottleneck(inputs, outputs, stride, dtype=dtype))
                inputs = outputs

    def __call__(self, image: Float[Array, "b s s 3"]) -> Float[Array, "b h w c"]:
        """The map of the last stage."""
        return self.maps(image)[-1]

    def maps(self, image: Float[Array, "b s s 3"]) -> tuple[Float[Array, "b h w c"], ...]:
        """The map of every stage, finest first: strides 4, 8, 16, 32."""
        x, maps = jax.nn.relu(self.stem(image)), []
        # Max pooling pads with a value that never wins; after a ReLU that is 0, too.
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")
        for stage, depth in enumerate(self.config.depths):
            for number in range(depth):
                x = getattr(self, f"stage_{stage}_{number}")(x)
            maps.append(x)
        return tuple(maps)


def grid(image_size: int, config: ResNetConfig) -> int:
    """Side of the feature map; every halving rounds up."""
    for _ in range(len(config.widths) + 1):
        image_size = -(-image_size // 2)
    return image_size
