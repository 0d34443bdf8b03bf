"""Features of many layers and times → one map: a bottleneck per layer, and a softmax over layers and times (spec 6)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rahf.diffusion.networks.blocks import GroupNorm
from rahf.nn import layers
from rahf.saliency.augsal.features import Features, Layer


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions with group norms, a 1x1 shortcut beside them, ReLU (He et al. 2016).

    With `temb` a linear map of the timestep's embedding is added between the first two, as Readout Guidance does.
    """

    def __init__(self, inputs: int, width: int, outputs: int, temb: int, groups: int, *, dtype: jnp.dtype):
        dense = lambda i, o: layers.Linear(i, o, bias=False, std=(2 / i) ** 0.5, dtype=dtype)  # noqa: E731
        norm = lambda width: GroupNorm(width, groups, dtype=dtype)  # noqa: E731
        self.conv1, self.norm1 = dense(inputs, width), norm(width)
        self.conv2, self.norm2 = layers.Conv3x3(width, width, bias=False, dtype=dtype), norm(width)
        self.conv3, self.norm3 = dense(width, outputs), norm(outputs)
        self.shortcut, self.norm_shortcut = dense(inputs, outputs), norm(outputs)
        if temb:
            self.time_emb_proj = layers.Linear(temb, width, bias=True, std=temb**-0.5, dtype=dtype)
        self.timed = bool(temb)

    def __call__(self, x: Float[Array, "b h w i"], temb: Float[Array, "b d"]) -> Float[Array, "b h w o"]:
        y = self.norm1(self.conv1(x))
        if self.timed:
            y = y + layers.spread(self.time_emb_proj(jax.nn.silu(temb))[:, None, None].astype(jnp.float32), y)
        y = jax.nn.relu(self.norm2(self.conv2(jax.nn.relu(y))))
        return jax.nn.relu(self.norm3(self.conv3(y)) + self.norm_shortcut(self.shortcut(x)))


class Aggregation(nnx.Module):
    """`Features` → [B,resolution,resolution,outputs]."""

    def __init__(
        self,
        of_layers: Sequence[Layer],
        times: int,
        resolution: int,
        *,
        width: int = 96,
        outputs: int = 384,
        groups: int = 32,
        temb: int = 0,
        dtype: jnp.dtype,
    ):
        """Args:
        of_layers: whose features come.
        times: T.
        resolution: side of the result; maps are resized to it bilinearly.
        width, outputs, groups: of the bottlenecks.
        temb: width of the timestep's embedding, if it is read; 0: it is not.
        """
        block = lambda layer: Bottleneck(layer.channels, width, outputs, temb, groups, dtype=dtype)  # noqa: E731
        self.bottlenecks = layers.Numbered([block(layer) for layer in of_layers])
        self.mixing = layers.parameter(times, len(of_layers))
        self.resolution, self.dtype = resolution, dtype

    def weights(self) -> Float[Array, "t l"]:
        """Shares of times and layers, float32, sum 1; equal before training."""
        logits = self.mixing[...]
        return jax.nn.softmax(logits.reshape(-1)).reshape(logits.shape)

    def __call__(self, features: Features) -> Float[Array, "b r r o"]:
        """The weighted sum, in the compute dtype.

        Raises:
          ValueError: another number of layers or times than it was built for.
        """
        weights = self.weights()
        times, count = weights.shape
        present = features.maps[0].shape[1], len(features.maps)
        if present != (times, count):
            raise ValueError(f"features at {present[0]} times of {present[1]} layers, expected {times} of {count}")
        total, side = 0.0, self.resolution
        for number, maps in enumerate(features.maps):
            b, t, h, w, c = maps.shape
            x = jax.image.resize(maps.reshape(b * t, h, w, c).astype(self.dtype), (b * t, side, side, c), "bilinear")
            x = self.bottlenecks[number](x, features.temb.reshape(b * t, -1))
            x = x.reshape(b, t, *x.shape[1:]).astype(jnp.float32)
            total = total + jnp.einsum("bthwc,t->bhwc", x, weights[:, number])
        return total.astype(self.dtype)
