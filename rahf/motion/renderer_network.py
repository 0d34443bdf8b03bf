"""The trained renderer: features of the photograph at several scales, splatted along the motion, decoded to a frame.

As in Generative Image Dynamics (Li et al. 2024, section 4.3), without its synthesis network, which is larger. The
decoder adds to what `rahf.motion.render` draws without a network, and its last convolution starts at zero: before
training the two draw the same frame. It adds to a pixel the more, the less of the photograph arrived there: in what
the motion uncovers splatting can only guess, while elsewhere it is right already, and an absolute error over the whole
frame would hold the convolution at zero.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rahf.config.motion import MotionRendererConfig
from rahf.diffusion.networks import latent_blocks as blocks
from rahf.diffusion.networks.blocks import GroupNorm
from rahf.motion import render, splat
from rahf.nn import layers

#: Share of the pixels' range by which an uncovered pixel changes where the last convolution gives 1.
RESIDUAL = 0.2


class _Block(nnx.Module):
    """Two convolutions with norms in front; residual."""

    def __init__(self, inputs: int, outputs: int, groups: int, *, dtype: jnp.dtype):
        self.resnet = blocks.ResnetBlock2D(inputs, outputs, 0, groups, dtype=dtype)

    def __call__(self, x: Array) -> Array:
        return self.resnet(x)


class RendererNetwork(nnx.Module):
    """Photograph, displacements and importance → a frame. Works at any size."""

    def __init__(self, config: MotionRendererConfig):
        dtype, widths, groups = jnp.dtype(config.compute_dtype), config.block_out_channels, config.norm_num_groups
        self.config = config
        self.conv_in = layers.Conv3x3(3, widths[0], dtype=dtype)
        self.encoders = layers.Numbered(
            _Block(widths[max(level - 1, 0)], width, groups, dtype=dtype) for level, width in enumerate(widths)
        )
        self.downsamplers = layers.Numbered(blocks.Downsample2D(width, dtype=dtype) for width in widths[:-1])
        # Beside the features of a level: its coverage, and what comes up from the coarser one.
        coarser = [*widths[1:], 0]
        self.decoders = layers.Numbered(
            _Block(width + 1 + coarser[level], width, groups, dtype=dtype) for level, width in enumerate(widths)
        )
        self.upsamplers = layers.Numbered([None, *(blocks.Upsample2D(width, dtype=dtype) for width in widths[1:])])
        self.norm_out = GroupNorm(widths[0] + 4, 1, dtype=dtype)
        self.conv_out = layers.Conv3x3(widths[0] + 4, 3, dtype=dtype, gain=0.0)

    def __call__(
        self,
        pictures: Float[Array, "b h w 3"],
        flow: Float[Array, "b h w 2"],
        importance: Float[Array, "b h w"],
    ) -> Float[Array, "b h w 3"]:
        """Frames, float32, about [0,1] and not clipped.

        Args:
          pictures: in [0,1].
          flow: displacements of their pixels.
          importance: of `rahf.motion.splat.softmax_splat`.
        """
        weights = importance if self.config.splat == "softmax" else jnp.zeros_like(importance)
        base, coverage = render.splatted(pictures, flow, importance, weights)
        x, splats = self.conv_in(2 * pictures - 1), []
        for level, encoder in enumerate(self.encoders):
            x = encoder(x)
            splats.append(self._moved(x, flow, weights))
            if level in self.downsamplers.numbers:
                x = self.downsamplers[level](x)
        y = None
        for level in reversed(range(len(splats))):
            parts = [splats[level]]
            if y is not None:
                parts.append(self.upsamplers[level + 1](y, splats[level].shape[1:3]))
            y = self.decoders[level](jnp.concatenate(parts, -1))
        features = jnp.concatenate([y, base.astype(y.dtype), coverage[..., None].astype(y.dtype)], -1)
        uncovered = 1 - jnp.clip(coverage, 0, 1)[..., None]
        return base + RESIDUAL * uncovered * self.conv_out(jax.nn.silu(self.norm_out(features))).astype(jnp.float32)

    def _moved(self, x: Float[Array, "b h w c"], flow: Array, weights: Array) -> Float[Array, "b h w c1"]:
        """Features of one scale along the flow at that scale, and their coverage as a last channel."""
        b, height, width = x.shape[:3]
        scale = jnp.array([width / flow.shape[2], height / flow.shape[1]], jnp.float32)
        flow = jax.image.resize(flow, (b, height, width, 2), "linear") * scale
        weights = jax.image.resize(weights, (b, height, width), "linear")
        moved = splat.softmax_splat(x.astype(jnp.float32), flow, weights)
        return jnp.concatenate([moved.values, jnp.clip(moved.coverage, 0, 1)[..., None]], -1).astype(x.dtype)
