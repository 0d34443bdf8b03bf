"""The paper's network with a tower that convolves: its maps of several strides reach the heads beside the tokens.

The coarsest map becomes the image tokens of the fusion stack. The finer ones are added to the stages of the heatmap
heads that have their side (U-Net; Ronneberger et al. 2015). The score heads read the fused tokens, mean and deviation
of every map, and how much of the image the heatmaps mark and how clearly.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from rahf.config import CriticConfig
from rahf.core.batch import HEATMAPS, SCORES, Batch
from rahf.core.errors import ConfigError
from rahf.critic.networks import heads
from rahf.critic.networks.multi_head import Rahf
from rahf.critic.networks.outputs import Fused, Logits, TowerMaps
from rahf.nn import convnext, efficientnet, layers, resnet

#: Width of what the score heads are told of the tower's maps.
_SUMMARY = 64
#: What the score heads are told of each heatmap: log of its mean, and its maximum.
_OF_HEATMAP = 2
#: Added to the mean of a heatmap in front of the logarithm: one disc of an annotator marks 0.8 % of an image.
_LEAST_MEAN = 1e-3


class Seen(NamedTuple):
    """What the tower makes of an image."""

    tokens: Float[Array, "b n d"]  # of the coarsest map, in the width of the fusion stack
    maps: tuple[Float[Array, "b h w c"], ...]  # finest first, the coarsest last


def build_tower(config: CriticConfig, dtype: jnp.dtype) -> nnx.Module:
    """The tower that `config.tower` names."""
    if config.tower == "efficientnet":
        return efficientnet.EfficientNet(config.efficientnet, dtype=dtype)
    if config.tower == "resnet":
        return resnet.ResNet(config.resnet, dtype=dtype)
    return convnext.ConvNext(config.convnext, dtype=dtype)


def map_shapes(config: CriticConfig) -> tuple[tuple[int, int], ...]:
    """Side and channels of the maps that the heads see, finest first, folded ones counted.

    Raises:
      ConfigError: a side that the coarsest stride does not divide, no map as fine as `finest_skip`, or fewer maps
        that are finer than `folded_maps`.
    """
    if config.tower == "efficientnet":
        widths, first = efficientnet.map_widths(config.efficientnet), 2
    elif config.tower == "resnet":
        widths, first = config.resnet.widths, 4
    else:
        widths, first = config.convnext.widths, config.convnext.patch_size
    strides = [first * 2**number for number in range(len(widths))]
    if config.image_size % strides[-1]:
        raise ConfigError(f"model.image_size {config.image_size}: expected a multiple of {strides[-1]}")
    if config.finest_skip not in strides:
        raise ConfigError(f"model.finest_skip {config.finest_skip}: expected one of {', '.join(map(str, strides))}")
    finest = strides.index(config.finest_skip)
    if not 0 <= config.folded_maps <= finest:
        raise ConfigError(
            f"model.folded_maps {config.folded_maps}: expected 0 to {finest}, finer maps than the finest skip"
        )
    folded = sum(widths[finest - step] * 4**step for step in range(1, config.folded_maps + 1))
    shapes = [[config.image_size // stride, width] for stride, width in zip(strides, widths)][finest:]
    shapes[0][1] += folded
    return tuple((side, width) for side, width in shapes)


class ConvolutionalRahf(Rahf):
    """Image and prompt → the same outputs as `Rahf`."""

    def __init__(self, config: CriticConfig):
        if config.variant != "multi-head":
            raise ConfigError(
                f"model.variant {config.variant!r} needs model.tower 'vit'; towers that convolve have 'multi-head'"
            )
        super().__init__(config)

    def _add_tower(self, options: dict[str, Any]) -> int:
        shapes = map_shapes(self.config)
        self.grid, self.map_widths = shapes[-1][0], tuple(width for _, width in shapes)
        self.tower = build_tower(self.config, self.dtype)
        # A convolution does not know where it is; patches of a ViT have learned positions, too.
        self.position = layers.parameter(self.grid**2, self.config.t5.width, std=0.02)
        both = 2 * sum(self.map_widths)
        self.summary = layers.Linear(both, _SUMMARY, bias=True, std=both**-0.5, dtype=self.dtype)
        return self.map_widths[-1]

    def _tag_width(self) -> int:
        """The tokens behind the projection: it learns to name what is shown even where the tower is frozen."""
        return self.config.t5.width

    def _heatmap_head(self, options: dict[str, Any]) -> heads.HeatmapHead:
        config, skips = self.config, self.map_widths[-2::-1]
        size, grid = config.image_size, self.grid
        return heads.HeatmapHead(config.t5.width, size, config.heatmap_head, grid=grid, skips=skips, **options)

    def _score_head(self, options: dict[str, Any]) -> heads.ScoreHead:
        beside = _SUMMARY + _OF_HEATMAP * len(HEATMAPS)
        return heads.ScoreHead(self.config.t5.width, self.grid, self.config.score_head, beside=beside, **options)

    def maps(self, image: Array | TowerMaps) -> tuple[Float[Array, "b h w c"], ...]:
        """The maps that the heads see, finest first; of an image, or those that were computed before."""
        if isinstance(image, TowerMaps):
            return tuple(part.astype(self.dtype) for part in image.maps)
        return self.tower_maps(image)

    def tower_maps(self, image: Array) -> tuple[Float[Array, "b h w c"], ...]:
        """The maps that the heads see, of an image."""
        maps = self._part(self.tower.maps)(self.pixels(image))
        first = len(maps) - len(self.map_widths)
        folded = [_folded(maps[first - step], 2**step) for step in range(1, self.config.folded_maps + 1)]
        return jnp.concatenate([maps[first], *folded], -1), *maps[first + 1 :]

    def see(self, image: Array | TowerMaps, key: layers.Key = None) -> Float[Array, "b n d"]:
        """The coarsest map as tokens, in the tower's width."""
        return _as_tokens(self.maps(image)[-1])

    def image_tokens(self, image: Array | TowerMaps, key: layers.Key = None) -> Seen:
        """Tokens in the width of the fusion stack, and all maps; independent of the prompt."""
        maps = self.maps(image)
        tokens = self.projection(_as_tokens(maps[-1]))
        return Seen(tokens + layers.spread(self.position[...], tokens), maps)

    def fuse(
        self,
        image_tokens: Seen,
        text_ids: Int[Array, "b l"],
        text_mask: Bool[Array, "b l"],
        key: layers.Key = None,
    ) -> Fused:
        """Joint self-attention over image tokens and prompt tokens; the maps go past it."""
        return super().fuse(image_tokens.tokens, text_ids, text_mask, key)._replace(maps=image_tokens.maps)

    def _small_heatmaps(self, fused: Fused, key: layers.Key) -> tuple[Float[Array, "b r r"], ...]:
        """Logits of both heatmaps at the side of the last stage."""
        heads = [self._part(getattr(self, f"heatmap_{name}").small) for name in HEATMAPS]
        return tuple(
            head(fused.image, layers.subkey(key, number), fused.maps[-2::-1]) for number, head in enumerate(heads)
        )

    def _enlarged(self, small: tuple[Float[Array, "b r r"], ...]) -> Float[Array, "b s s 2"]:
        return jnp.stack([getattr(self, f"heatmap_{name}").enlarged(x) for name, x in zip(HEATMAPS, small)], -1)

    def heatmap_logits(self, fused: Fused, key: layers.Key = None) -> Float[Array, "b s s 2"]:
        """Logits of both heatmaps in order HEATMAPS, float32."""
        return self._enlarged(self._small_heatmaps(fused, key))

    def score_logits(self, fused: Fused, key: layers.Key = None) -> Float[Array, "b 4"]:
        """Logits of the four scores in order SCORES, float32."""
        return self._scores(fused, self._small_heatmaps(fused, None), key)

    def _scores(self, fused: Fused, small: tuple[Array, ...], key: layers.Key) -> Float[Array, "b 4"]:
        beside = jnp.concatenate([jax.nn.relu(self.summary(_statistics(fused.maps))), _marked(small)], -1)
        heads = [self._part(getattr(self, f"score_{name}")) for name in SCORES]
        return jnp.stack([head(fused.image, layers.subkey(key, i), beside) for i, head in enumerate(heads)], -1)

    def _outputs(self, batch: Batch, key: layers.Key = None) -> Logits:
        seen = self.image_tokens(batch.image)
        fused = self.fuse(seen, batch.text_ids, batch.text_mask, layers.subkey(key, 1))
        small = self._small_heatmaps(fused, layers.subkey(key, 2))
        return Logits(
            self._enlarged(small),
            self._scores(fused, small, layers.subkey(key, 3)),
            self.sequence_logits(fused, batch.target_ids, layers.subkey(key, 4)),
            self.tag_logits(seen.tokens),
        )


def _folded(grid: Float[Array, "b h w c"], size: int) -> Float[Array, "b h2 w2 c2"]:
    """Squares of `size` pixels as channels of one pixel."""
    b, h, w, c = grid.shape
    grid = grid.reshape(b, h // size, size, w // size, size, c).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(b, h // size, w // size, size * size * c)


def _as_tokens(grid: Float[Array, "b h w c"]) -> Float[Array, "b n c"]:
    return grid.reshape(grid.shape[0], -1, grid.shape[-1])


def _statistics(maps: tuple[Float[Array, "b h w c"], ...]) -> Float[Array, "b n"]:
    """Mean and standard deviation of every channel of every map."""
    parts = []
    for grid in maps:
        mean = grid.mean((1, 2))
        variance = jnp.square(grid - mean[:, None, None]).mean((1, 2))
        parts += [mean, jnp.sqrt(variance + 1e-6)]  # the gradient of a root at 0 is infinite
    return jnp.concatenate(parts, -1)


def _marked(small: tuple[Float[Array, "b r r"], ...]) -> Float[Array, "b m"]:
    """How much of the image each heatmap marks, as a logarithm, and how clearly."""
    parts = []
    for logits in small:
        heatmap = jax.nn.sigmoid(logits)
        parts += [jnp.log(heatmap.mean((1, 2)) + _LEAST_MEAN), heatmap.max((1, 2))]
    return jnp.stack(parts, -1)
