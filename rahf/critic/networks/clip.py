"""CLIP (Radford et al. 2021) as baseline: cosine of image and text, its gradient in the pixels, or trained scores."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from rahf.config import ClipBaselineConfig
from rahf.core.batch import HEATMAPS, SCORES, Batch
from rahf.core.errors import ConfigError
from rahf.critic.networks import outputs
from rahf.nn import layers, vit
from rahf.nn.clip_text import TextTower

#: A logit of a value in [0,1] that is 0 or 1 would be infinite.
_EDGE = 1e-6
_LARGEST_SCALE = math.log(100.0)


class ClipEmbeddings(NamedTuple):
    """Embeddings of images and texts, of length 1, float32; and the pixels that the heatmap is a gradient in."""

    pixels: Float[Array, "b s s 3"]  # normalised
    image: Float[Array, "b w"]
    text: Float[Array, "b w"]


class Clip(nnx.Module):
    """Image and prompt → scores, misalignment heatmap, or both; as `ClipBaselineConfig.clip` says."""

    def __init__(self, config: ClipBaselineConfig):
        clip, dtype = config.clip, jnp.dtype(config.compute_dtype)
        if not config.vit.class_token:
            raise ConfigError("model.vit.class_token: CLIP reads the image from its class token; set it to True")
        unknown = sorted(set(clip.cosine_scores) - set(SCORES))
        if unknown:
            raise ConfigError(f"model.clip.cosine_scores: no score {unknown[0]!r}; known: {', '.join(SCORES)}")
        self.config, self.dtype = config, dtype
        self.vit = vit.ViT(config.vit, config.image_size, dtype=dtype)
        self.text = TextTower(clip.text, dtype=dtype)
        options = dict(bias=False, dtype=dtype)
        self.image_projection = layers.Linear(config.vit.width, clip.width, std=config.vit.width**-0.5, **options)
        self.text_projection = layers.Linear(clip.text.width, clip.width, std=clip.text.width**-0.5, **options)
        self.logit_scale = layers.parameter(fill=math.log(1 / 0.07))  # natural logarithm, as published
        if clip.scores == "trained":
            width = 3 * clip.width
            for number, out in enumerate(clip.dense_widths):
                dense = layers.Linear(width, out, bias=True, std=(2.0 / width) ** 0.5, dtype=dtype)
                setattr(self, f"score_dense_{number}", dense)
                width = out
            self.score_out = layers.Linear(
                width, len(SCORES), bias=True, std=0.1 * width**-0.5, dtype=jnp.dtype("float32")
            )

    def image_tokens(self, image: Array, key: layers.Key = None) -> Float[Array, "b s s 3"]:
        """Normalised pixels. The heatmap is a gradient in them, so `fuse` runs the tower."""
        return outputs.normalised(self.config, image)

    def image_embedding(self, pixels: Float[Array, "b s s 3"], key: layers.Key = None) -> Float[Array, "b w"]:
        """Embedding of normalised images, length 1, float32."""
        return _unit(self.image_projection(self.vit(pixels, key)[:, 0]))

    def text_embedding(self, ids: Int[Array, "b l"]) -> Float[Array, "b w"]:
        """Embedding of texts, length 1, float32."""
        return _unit(self.text_projection(self.text(ids)))

    def fuse(
        self,
        image_tokens: Float[Array, "b s s 3"],
        text_ids: Int[Array, "b l"],
        text_mask: Bool[Array, "b l"],
        key: layers.Key = None,
    ) -> ClipEmbeddings:
        """Both embeddings."""
        return ClipEmbeddings(image_tokens, self.image_embedding(image_tokens, key), self.text_embedding(text_ids))

    def cosine(self, fused: ClipEmbeddings) -> Float[Array, " b"]:
        """Cosine of image and text in [-1,1]; times exp(`logit_scale`) it is CLIP's and PickScore's own output."""
        return (fused.image * fused.text).sum(-1)

    def similarity_scale(self) -> Float[Array, ""]:
        """What CLIP multiplies cosines by: exp(`logit_scale`), at most 100 (Radford et al. 2021, section 2.5)."""
        return jnp.exp(jnp.minimum(self.logit_scale[...].astype(jnp.float32), _LARGEST_SCALE))

    def score_logits(self, fused: ClipEmbeddings, key: layers.Key = None) -> Float[Array, "b 4"]:
        """Logits of the four scores in order SCORES; NaN for those that are not predicted.

        An untrained score is (1 + cosine) / 2: correlations with ratings do not change under a linear map.
        """
        clip = self.config.clip
        if clip.scores == "trained":
            # Both embeddings and their product, whose sum is the cosine; scaled to entries of about 1.
            image, text = (x * clip.width**0.5 for x in (fused.image, fused.text))
            x = jnp.concatenate([image, text, image * text], -1)
            for number in range(len(clip.dense_widths)):
                x = jax.nn.relu(getattr(self, f"score_dense_{number}")(x))
            return self.score_out(x.astype(jnp.float32))
        logit = _logit((1.0 + self.cosine(fused)) / 2.0)
        predicted = np.array([name in clip.cosine_scores for name in SCORES])
        return jnp.where(predicted, logit[:, None], jnp.nan)

    def heatmap_logits(self, fused: ClipEmbeddings, key: layers.Key = None) -> Float[Array, "b s s 2"]:
        """Logits of the gradient map as misalignment; NaN where there is none."""
        if self.config.clip.heatmap == "none":
            return jnp.full((*fused.pixels.shape[:3], len(HEATMAPS)), jnp.nan, jnp.float32)
        predicted = np.array([name == "misalignment" for name in HEATMAPS])
        # `where`, not `stack`: XLA on CPUs (jax 0.10) loses the NaN of a constant that is stacked with computed values.
        return jnp.where(predicted, _logit(self.gradient_map(fused))[..., None], jnp.nan)

    def gradient_map(self, fused: ClipEmbeddings) -> Float[Array, "b s s"]:
        """|d cosine / d pixel| summed over colours, blurred, divided by its maximum over the image: in [0,1].

        It shows where the cosine of the complete prompt is most sensitive. It is blurred because the gradient of a
        patch embedding is noisy from pixel to pixel. The paper calls its baseline "CLIP gradient", without details.
        """
        # Images are independent of each other, so the gradient of the sum is each image's own.
        total_cosine = lambda pixels: (self.image_embedding(pixels) * fused.text).sum()
        values = jnp.abs(jax.grad(total_cosine)(fused.pixels)).sum(-1)
        # Gradients are small numbers: they are scaled before the sums of the blur, which would lose digits.
        values = values / jnp.maximum(values.max((1, 2), keepdims=True), jnp.finfo(jnp.float32).tiny)
        blur = jnp.asarray(_blur(self.config.image_size, self.config.clip.heatmap_blur * self.config.image_size))
        values = jnp.einsum("yr,brc,xc->byx", blur, values, blur, precision="highest")
        return values / jnp.maximum(values.max((1, 2), keepdims=True), jnp.finfo(jnp.float32).tiny)

    def sequence_logits(self, fused: ClipEmbeddings, target_ids: Array, key: layers.Key = None) -> None:
        """There is no target sequence."""
        return None

    def generate(self, fused: ClipEmbeddings, length: int) -> None:
        """There is no target sequence."""
        return None

    def __call__(self, batch: Batch, key: layers.Key = None) -> outputs.Logits:
        """All outputs of a batch, before the sigmoids. `key` switches dropout on."""
        fused = self.fuse(self.image_tokens(batch.image), batch.text_ids, batch.text_mask, key)
        return outputs.Logits(self.heatmap_logits(fused), self.score_logits(fused), None)


def _unit(x: Float[Array, "b w"]) -> Float[Array, "b w"]:
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True))


def _logit(value: Float[Array, "*b"]) -> Float[Array, "*b"]:
    value = jnp.clip(value, _EDGE, 1.0 - _EDGE)
    return jnp.log(value) - jnp.log1p(-value)


def _blur(size: int, deviation: float) -> Float[np.ndarray, "n n"]:
    """A Gaussian blur of one axis as a matrix; its rows are normalised so that borders do not darken."""
    if deviation <= 0:
        return np.eye(size, dtype=np.float32)
    distance = np.arange(size)[:, None] - np.arange(size)
    weights = np.exp(-0.5 * np.square(distance / deviation))
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
