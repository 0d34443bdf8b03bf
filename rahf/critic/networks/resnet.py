"""ResNet-50 (He et al. 2016) with the heads of the paper's network on its feature map: heatmaps and scores.

It reads no prompt, as the low alignment score of the paper's ResNet-50 suggests, and so judges no words.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rahf.config import ResNetBaselineConfig
from rahf.core.batch import HEATMAPS, SCORES, Batch
from rahf.critic.networks import heads, outputs
from rahf.nn import layers
from rahf.nn.resnet import ResNet, grid


class ResNetBaseline(nnx.Module):
    """Image → heatmaps and scores; the prompt is not read."""

    def __init__(self, config: ResNetBaselineConfig):
        dtype = jnp.dtype(config.compute_dtype)
        self.config, self.dtype = config, dtype
        self.resnet = ResNet(config.resnet, dtype=dtype)
        width, side = config.resnet.widths[-1], grid(config.image_size, config.resnet)
        for name in HEATMAPS:
            head = heads.HeatmapHead(width, config.image_size, config.heatmap_head, grid=side, dtype=dtype)
            setattr(self, f"heatmap_{name}", head)
        for name in SCORES:
            setattr(self, f"score_{name}", heads.ScoreHead(width, side, config.score_head, dtype=dtype))

    def image_tokens(self, image: Array, key: layers.Key = None) -> Float[Array, "b h w c"]:
        """The feature map of images of any size, uint8 or float in [0,1]."""
        return self.resnet(outputs.normalised(self.config, image).astype(self.dtype))

    def fuse(self, image_tokens: Float[Array, "b h w c"], text_ids, text_mask, key: layers.Key = None) -> Array:
        """The feature map, unchanged."""
        return image_tokens

    def heatmap_logits(self, fused: Float[Array, "b h w c"], key: layers.Key = None) -> Float[Array, "b s s 2"]:
        """Logits of both heatmaps in order HEATMAPS, float32."""
        heads = [getattr(self, f"heatmap_{name}") for name in HEATMAPS]
        return jnp.stack([head(fused, layers.subkey(key, i)) for i, head in enumerate(heads)], -1)

    def score_logits(self, fused: Float[Array, "b h w c"], key: layers.Key = None) -> Float[Array, "b 4"]:
        """Logits of the four scores in order SCORES, float32."""
        heads = [getattr(self, f"score_{name}") for name in SCORES]
        return jnp.stack([head(fused, layers.subkey(key, i)) for i, head in enumerate(heads)], -1)

    def sequence_logits(self, fused: Array, target_ids: Array, key: layers.Key = None) -> None:
        """There is no target sequence."""
        return None

    def generate(self, fused: Array, length: int) -> None:
        """There is no target sequence."""
        return None

    def __call__(self, batch: Batch, key: layers.Key = None) -> outputs.Logits:
        """All outputs of a batch, before the sigmoids. `key` switches dropout on."""
        features = self.image_tokens(batch.image)
        heatmaps = self.heatmap_logits(features, layers.subkey(key, 2))
        return outputs.Logits(heatmaps, self.score_logits(features, layers.subkey(key, 3)), None)
