"""Picture → log-density of where people look: a tower, a decoder over its maps of several strides, a centre bias.

    log p(cell) = log softmax over the cells inside the frame of [ scale · blur(readout) + bias · centre ]

The decoder goes from the coarsest map to the finest, as a feature pyramid (Lin et al. 2017); every level gives a
readout, and they are added. The Gaussian behind it has a learned width, as in DeepGaze (Kümmerer et al. 2016). `centre`
is the logarithm of a Gaussian over the picture plus a constant; at weight 0 the centre bias is out.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from rahf.config import SaliencyConfig
from rahf.core.errors import ConfigError
from rahf.critic.networks.convolutional import build_tower
from rahf.critic.networks.outputs import TowerMaps
from rahf.nn import efficientnet, layers, vit
from rahf.nn.execution import Execution

#: Log-density outside of the picture: its density is 0 there, and no arithmetic becomes infinite.
OUTSIDE = -1e4
#: Parameters of few-shot adaptation: where people look at first, how sharp, and how far the eye-tracker spreads.
ADAPTED = ("centre", "scale", "blur")


def map_widths(config: SaliencyConfig) -> list[tuple[int, int]]:
    """Stride and channels of the maps that the decoder sees, finest first.

    Raises:
      ConfigError: a canvas that a stride does not divide, a stride that the tower does not have, another number of
        decoder widths than maps, or a canvas of a vision transformer that is no square.
    """
    if config.tower == "efficientnet":
        widths, first = efficientnet.map_widths(config.efficientnet), 2
    elif config.tower == "resnet":
        widths, first = config.resnet.widths, 4
    elif config.tower == "convnext":
        widths, first = config.convnext.widths, config.convnext.patch_size
    else:
        widths, first = (config.vit.width,), config.vit.patch_size
        if config.image_height != config.image_width:
            raise ConfigError(
                f"model.image_height {config.image_height} and image_width {config.image_width}: a vision transformer "
                "sees a square; set both to the same"
            )
    strides = [first * 2**number for number in range(len(widths))]
    if config.tower == "vit" and config.stride in (first, first // 2, first // 4):
        maps = [(first, config.vit.width)]
    elif config.stride in strides:
        maps = [pair for pair in zip(strides, widths) if pair[0] >= config.stride]
    else:
        raise ConfigError(f"model.stride {config.stride}: expected one of {', '.join(map(str, strides))}")
    for name in ("image_height", "image_width"):
        if getattr(config, name) % strides[-1]:
            raise ConfigError(f"model.{name} {getattr(config, name)}: expected a multiple of {strides[-1]}")
    if not config.scales or (config.tower == "vit" and config.scales != (1.0,)):
        raise ConfigError(f"model.scales {config.scales}: expected at least one; of a vision transformer (1.0,)")
    for scale in config.scales:
        for name in ("image_height", "image_width"):
            side = getattr(config, name) * scale
            if side <= 0 or abs(side - round(side)) > 1e-3 or round(side) % strides[-1]:
                raise ConfigError(
                    f"model.scales {scale:g}: model.{name} {getattr(config, name)} becomes {side:g}, expected a "
                    f"multiple of {strides[-1]}"
                )
    if config.tower == "efficientnet" and config.frozen_stages > len(config.efficientnet.depths):
        raise ConfigError(
            f"model.frozen_stages {config.frozen_stages}: the tower has {len(config.efficientnet.depths)} stages"
        )
    if len(config.widths) != len(maps):
        raise ConfigError(
            f"model.widths: {len(config.widths)} widths, but the tower gives {len(maps)} maps from stride "
            f"{config.stride} on"
        )
    return maps


class DecoderBlock(nnx.Module):
    """x + 1x1(relu(3x3(norm(x))))."""

    def __init__(self, width: int, *, dtype: jnp.dtype):
        self.norm = layers.LayerNorm(width, dtype=dtype)
        self.conv = layers.Conv3x3(width, width, dtype=dtype)
        self.out = layers.Linear(width, width, bias=True, std=0.5 * width**-0.5, dtype=dtype)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return x + self.out(jax.nn.relu(self.conv(self.norm(x))))


class Level(nnx.Module):
    """One map of the tower: brought to the decoder's width, joined with the coarser level, refined, and read out."""

    def __init__(self, inputs: int, coarser: int, width: int, blocks: int, *, dtype: jnp.dtype):
        self.norm = layers.LayerNorm(inputs, dtype=dtype)
        self.lateral = layers.Linear(inputs, width, bias=True, std=inputs**-0.5, dtype=dtype)
        if coarser:
            self.down = layers.Linear(coarser, width, bias=False, std=coarser**-0.5, dtype=dtype)
        else:  # what the whole picture shows decides what stands out in it
            self.context = layers.Linear(inputs, width, bias=False, std=0.5 * inputs**-0.5, dtype=dtype)
        for number in range(blocks):
            setattr(self, f"block_{number}", DecoderBlock(width, dtype=dtype))
        self.out_norm = layers.LayerNorm(width, dtype=dtype)
        self.readout = layers.Linear(width, 1, bias=False, std=0.5 * width**-0.5, dtype=dtype)
        self.blocks, self.coarsest = blocks, not coarser

    def __call__(
        self, grid: Float[Array, "b h w i"], coarser: Float[Array, "b h2 w2 d"] | None
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w"]]:
        normed = self.norm(grid)
        x = self.lateral(normed)
        if self.coarsest:
            x = x + self.context(normed.mean((1, 2), keepdims=True))
        else:
            x = x + resized(self.down(coarser), x.shape[1:3])
        for number in range(self.blocks):
            x = getattr(self, f"block_{number}")(x)
        return x, self.readout(jax.nn.relu(self.out_norm(x)))[..., 0]


class SaliencyNetwork(nnx.Module):
    """Pictures on the canvas → log-density [b,h,w] over cells of `config.stride` pixels."""

    def __init__(self, config: SaliencyConfig):
        self.config, dtype = config, jnp.dtype(config.compute_dtype)
        maps = map_widths(config)
        if config.tower == "vit":
            execution = Execution(config.attention, config.remat, config.scan_layers)
            self.vit = vit.ViT(config.vit, config.image_height, dtype=dtype, execution=execution)
        else:
            self.tower = build_tower(config, dtype)
        self.levels = len(maps)
        coarser = 0
        for number, ((_, inputs), width) in enumerate(zip(maps[::-1], config.widths)):
            blocks = 1 if number == self.levels - 1 and number else config.blocks
            setattr(self, f"level_{number}", Level(inputs, coarser, width, blocks, dtype=dtype))
            coarser = width
        self.scale = layers.parameter(1, fill=1.0)
        self.blur = layers.parameter(1, fill=math.log(config.blur))
        self.centre = Centre()

    def tower_maps(
        self, image: UInt8[Array, "b H W 3"] | Float[Array, "b H W 3"]
    ) -> tuple[Float[Array, "b h w c"], ...]:
        """What the frozen part of the tower gives: what `train.cache_tower` keeps, and `all_maps` goes on from.

        Args:
          image: on the canvas, uint8 or float in [0,1].
        """
        config = self.config
        x = image.astype(jnp.float32)
        if jnp.issubdtype(image.dtype, jnp.integer):
            x = x * (1.0 / 255.0)
        x = (x - jnp.asarray(config.image_mean, jnp.float32)) / jnp.asarray(config.image_std, jnp.float32)
        if config.tower == "vit":
            tokens = self.vit(x)[:, -(self.vit.grid**2) :]
            return (tokens.reshape(x.shape[0], self.vit.grid, self.vit.grid, -1),)
        if config.tower != "efficientnet":
            return self.tower.maps(x)[-self.levels :]
        maps = self.tower.maps_until(x, config.frozen_stages)
        coarse = [grid for grid in maps[:-1] if config.image_height // grid.shape[1] >= config.stride]
        return (*coarse, maps[-1])

    def all_maps(self, maps: tuple[Float[Array, "b h w c"], ...]) -> tuple[Float[Array, "b h w c"], ...]:
        """The tower's maps from `config.stride` on, finest first, from what `tower_maps` gave."""
        if self.config.tower == "efficientnet":
            maps = self.tower.maps_from(maps, self.config.frozen_stages)
        return maps[-self.levels :]

    def readout(self, maps: tuple[Float[Array, "b h w c"], ...]) -> Float[Array, "b h w"]:
        """What the decoder says of each cell, before blur and centre bias."""
        x, total = None, 0.0
        for number, grid in enumerate(maps[::-1]):
            x, readout = getattr(self, f"level_{number}")(grid, x)
            total = total + resized(readout.astype(jnp.float32)[..., None], self.config.grid)[..., 0]
        return total

    def __call__(
        self,
        image: Any,
        frame: Int[Array, "b 4"],
        bias: Float[Array, " b"] | float = 1.0,
    ) -> Float[Array, "b h w"]:
        """Log-density, float32; its exponential sums to 1 over the cells of each picture's frame.

        Args:
          image: [b,H,W,3] on the canvas, uint8 or float in [0,1]; or a `TowerMaps`.
          frame: `rahf.images.letterbox.Frame` of each picture.
          bias: weight of the centre bias; 0: without.
        """
        return self.finish(self.decoded(image), frame, bias)

    def decoded(self, image: Any) -> Float[Array, "b h w"]:
        """`readout` of pictures on the canvas, or of a `TowerMaps`."""
        maps = tuple(image.maps) if isinstance(image, TowerMaps) else self.tower_maps(image)
        maps = self.all_maps(tuple(grid.astype(jnp.dtype(self.config.compute_dtype)) for grid in maps))
        return self.readout(maps)

    def finish(
        self, readout: Float[Array, "b h w"], frame: Int[Array, "b 4"], bias: Float[Array, " b"] | float = 1.0
    ) -> Float[Array, "b h w"]:
        """Scale, blur, centre bias and softmax: what few-shot adaptation changes (`ADAPTED`)."""
        logits = blurred(readout * self.scale[...], jnp.exp(self.blur[...][0]), frame)
        bias = jnp.broadcast_to(jnp.asarray(bias, jnp.float32), (logits.shape[0],))
        logits = logits + bias[:, None, None] * self.centre(frame, self.config.grid)
        return log_density(logits, frame)


class Centre(nnx.Module):
    """log(exp(-q/2) + exp(floor)) · gain, q = ((u - x)/sx)² + ((v - y)/sy)², u and v in shares of the picture."""

    def __init__(self) -> None:
        self.place = layers.parameter(2, fill=0.5)  # x, y
        self.spread = layers.parameter(2, fill=math.log(0.25))  # logarithms of sx, sy
        self.floor = layers.parameter(1, fill=-2.0)
        self.gain = layers.parameter(1, fill=1.0)

    def __call__(self, frame: Int[Array, "b 4"], grid: tuple[int, int]) -> Float[Array, "b h w"]:
        frame = frame.astype(jnp.float32)
        v = (jnp.arange(grid[0]) + 0.5 - frame[:, :1]) / frame[:, 2:3]
        u = (jnp.arange(grid[1]) + 0.5 - frame[:, 1:2]) / frame[:, 3:4]
        (x, y), (sx, sy) = self.place[...], jnp.exp(self.spread[...])
        q = jnp.square((v - y) / sy)[:, :, None] + jnp.square((u - x) / sx)[:, None, :]
        return jnp.logaddexp(-0.5 * q, self.floor[...]) * self.gain[...]


def log_density(logits: Float[Array, "b h w"], frame: Int[Array, "b 4"]) -> Float[Array, "b h w"]:
    """Log-softmax over the cells inside the frame; `OUTSIDE` elsewhere."""
    inside = cells_inside(frame, logits.shape[1:])
    masked = jnp.where(inside, logits, OUTSIDE)
    return jnp.where(inside, masked - jax.nn.logsumexp(masked, (1, 2), keepdims=True), OUTSIDE)


def cells_inside(frame: Int[Array, "b 4"], grid: tuple[int, int]) -> Array:
    """bool [b,h,w]: which cells belong to the picture."""
    rows, columns = jnp.arange(grid[0]), jnp.arange(grid[1])
    down = (rows >= frame[:, :1]) & (rows < frame[:, :1] + frame[:, 2:3])
    across = (columns >= frame[:, 1:2]) & (columns < frame[:, 1:2] + frame[:, 3:4])
    return down[:, :, None] & across[:, None, :]


def blurred(x: Float[Array, "b h w"], sigma: Array, frame: Int[Array, "b 4"]) -> Float[Array, "b h w"]:
    """A Gaussian of `sigma` cells over the cells inside the frame, weights normalised at its edges; differentiable."""

    def weights(side: int) -> Array:
        place = jnp.arange(side, dtype=jnp.float32)
        return jnp.exp(-0.5 * jnp.square((place[:, None] - place) / sigma))

    inside = cells_inside(frame, x.shape[1:]).astype(jnp.float32)
    smooth = lambda y: jnp.einsum("ij,bjk,lk->bil", weights(x.shape[1]), y, weights(x.shape[2]))
    return smooth(x * inside) / jnp.maximum(smooth(inside), 1e-6)


def resized(x: Float[Array, "b h w c"], grid: tuple[int, int]) -> Float[Array, "b h2 w2 c"]:
    """Bilinear, by products with small matrices."""
    if x.shape[1:3] == tuple(grid):
        return x
    return jax.image.resize(x, (x.shape[0], *grid, x.shape[-1]), "bilinear")
