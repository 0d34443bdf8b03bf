"""Augsal's networks: properties, class and saliency, read out of aggregated features (spec 7.1)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rahf.config import AugsalConfig
from rahf.diffusion.latents.doodl import crop
from rahf.diffusion.networks.stable_diffusion import StableDiffusion
from rahf.nn import layers
from rahf.saliency.augsal.aggregation import Aggregation
from rahf.saliency.augsal.features import Features, layers_of
from rahf.saliency.augsal.properties import PROPERTIES


class Readings(NamedTuple):
    """What is read out of a batch.

    Attributes:
      saliency: [B,r,r] in (0,1).
      properties: [B,6] of the region, in the order of `PROPERTIES`.
      classes: [B,C] logits of the region's class; [B,0] without a class readout.
    """

    saliency: Float[Array, "b r r"]
    properties: Float[Array, "b 6"]
    classes: Float[Array, "b c"]


class RegionReadout(nnx.Module):
    """3x3 convolutions to 128 and 32 channels, a region of them, two dense layers; SiLU between.

    "mean" averages the 32 channels over the region. "crop" enlarges the region to the whole grid and flattens it, as
    the published code's 32 x 64 x 64 inputs of its dense layer suggest; that layer then has most of the parameters.
    """

    def __init__(self, inputs: int, outputs: int, config: AugsalConfig, *, dtype: jnp.dtype):
        first, second, hidden = config.readout_widths
        self.conv1 = layers.Conv3x3(inputs, first, dtype=dtype)
        self.conv2 = layers.Conv3x3(first, second, dtype=dtype)
        flat = second * (config.resolution**2 if config.region == "crop" else 1)
        self.dense1 = layers.Linear(flat, hidden, bias=True, std=flat**-0.5, dtype=dtype)
        self.dense2 = layers.Linear(hidden, outputs, bias=True, std=hidden**-0.5, dtype=dtype)
        self.crops = config.region == "crop"

    def __call__(self, x: Float[Array, "b r r i"], boxes: Array, region: Float[Array, "b r r"]) -> Float[Array, "b o"]:
        if self.crops:
            x = crop(x.astype(jnp.float32), boxes).astype(x.dtype)
        x = jax.nn.silu(self.conv2(jax.nn.silu(self.conv1(x))))
        if self.crops:
            x = x.reshape(len(x), -1)
        else:
            inside = (region / jnp.maximum(region.sum((1, 2), keepdims=True), 1e-12))[..., None]
            x = (x.astype(jnp.float32) * inside).sum((1, 2))
        return self.dense2(jax.nn.silu(self.dense1(x))).astype(jnp.float32)


class SaliencyReadout(nnx.Module):
    """Seven 3x3 convolutions with SiLU; the high-level features join again after two, the low-level ones after four."""

    def __init__(self, features: int, config: AugsalConfig, *, dtype: jnp.dtype):
        a, b, c, d = config.saliency_widths
        dense = lambda: layers.Linear(features, features, bias=True, std=features**-0.5, dtype=dtype)  # noqa: E731
        self.low, self.high = dense(), dense()
        widths = [(2 * features, a), (a, b), (b + features, b), (b, c), (c + features, c), (c, d), (d, 1)]
        self.convs = layers.Numbered([layers.Conv3x3(i, o, dtype=dtype) for i, o in widths])

    def __call__(self, low: Float[Array, "b r r f"], high: Float[Array, "b r r f"]) -> Float[Array, "b r r"]:
        low, high = jnp.tanh(self.low(low)), jnp.tanh(self.high(high))
        x = jnp.concatenate([low, high], -1)
        for number, conv in enumerate(self.convs):
            if number in (2, 4):
                x = jnp.concatenate([x, high if number == 2 else low], -1)
            x = conv(x)
            x = jax.nn.silu(x) if number + 1 < len(self.convs) else x
        return jax.nn.sigmoid(x[..., 0].astype(jnp.float32))


class Readouts(nnx.Module):
    """Two stacks of aggregation, and all that is read out of them."""

    def __init__(self, config: AugsalConfig):
        dtype = jnp.dtype(config.pipeline.compute_dtype)
        unet = config.pipeline.unet
        stack = lambda: Aggregation(  # noqa: E731
            layers_of(unet),
            config.times,
            config.resolution,
            width=config.bottleneck_width,
            outputs=config.features,
            groups=config.groups,
            temb=4 * unet.block_out_channels[0] if config.time_embedding else 0,
            dtype=dtype,
        )
        self.low, self.high = stack(), stack()
        # The readout of global contrast also sees the picture, whose mean it needs.
        inputs = lambda name: config.features + 3 * (name == "global_contrast")  # noqa: E731
        for name in PROPERTIES:
            setattr(self, name, RegionReadout(inputs(name), 1, config, dtype=dtype))
        if config.classes:
            self.region_class = RegionReadout(config.features, config.classes, config, dtype=dtype)
        self.saliency = SaliencyReadout(config.features, config, dtype=dtype)
        self.config = config

    def __call__(
        self,
        features: Features,
        pictures: Float[Array, "b h w 3"],
        boxes: Float[Array, "b 4"],
        region: Float[Array, "b r r"],
    ) -> Readings:
        """Reads out.

        Args:
          features: of the pictures.
          pictures: in [0,1].
          boxes: the region of each, in shares of the sides: left, top, right, bottom.
          region: the same on the grid, `properties.regions(boxes, (r, r))`.
        """
        side = self.config.resolution
        low, high = self.low(features), self.high(features)
        small = jax.image.resize(pictures, (len(pictures), side, side, 3), "linear").astype(low.dtype)
        seen = {"global_contrast": jnp.concatenate([low, small], -1)}
        values = [getattr(self, name)(seen.get(name, low), boxes, region) for name in PROPERTIES]
        classes = (
            self.region_class(high, boxes, region) if self.config.classes else jnp.zeros((len(low), 0), jnp.float32)
        )
        return Readings(self.saliency(low, high), jnp.concatenate(values, -1), classes)


class AugsalNetwork(nnx.Module):
    """The frozen pipeline and the readouts, so that the parameters of a run are one tree."""

    def __init__(self, config: AugsalConfig):
        """Raises ConfigError: parts that do not fit each other."""
        self.base = StableDiffusion(config.pipeline)
        self.readouts = Readouts(config)
