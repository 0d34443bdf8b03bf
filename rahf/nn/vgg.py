"""VGG (Simonyan & Zisserman 2015) without its classifier: stages of 3x3 convolutions, a maximum of 2x2 between them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rahf.nn import layers


class VGGConfig(NamedTuple):
    """Sizes of a VGG. Defaults: VGG16.

    Attributes:
      widths: channels of the stages.
      depths: convolutions of the stages.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    depths: tuple[int, ...] = (2, 2, 3, 3, 3)

    def first(self, stages: int) -> VGGConfig:
        """The same network cut off after so many stages."""
        return VGGConfig(self.widths[:stages], self.depths[:stages])

    def numbers(self) -> tuple[tuple[int, ...], ...]:
        """Positions of each stage's convolutions in torchvision's `features`, where a ReLU follows each of them."""
        numbers, position = [], 0
        for depth in self.depths:
            numbers.append(tuple(range(position, position + 2 * depth, 2)))
            position += 2 * depth + 1
        return tuple(numbers)


class VGG(nnx.Module):
    """Normalised images → one map per stage, finest first; convolutions are called by torchvision's numbers."""

    def __init__(self, config: VGGConfig, *, dtype: jnp.dtype):
        self.config = config
        convolutions: list[nnx.Module | None] = [None] * (config.numbers()[-1][-1] + 1)
        inputs = 3
        for width, numbers in zip(config.widths, config.numbers()):
            for number in numbers:
                convolutions[number], inputs = layers.Conv3x3(inputs, width, dtype=dtype), width
        self.features = layers.Numbered(convolutions)

    def maps(self, image: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b h2 w2 c"], ...]:
        """The last map of each stage behind its ReLU (relu1_2, relu2_2, relu3_3, … of VGG16).

        A side of an odd number of pixels loses its last row or column at a maximum, as in PyTorch.
        """
        maps: list[Array] = []
        x = image
        for numbers in self.config.numbers():
            if maps:
                x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
            for number in numbers:
                x = jax.nn.relu(self.features[number](x))
            maps.append(x)
        return tuple(maps)
