"""Per-example losses, and one place where masks, means and weights meet (RAHF, section 4.2)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from rahf.batch import Batch
from rahf.config import LossConfig
from rahf.models.rahf import Logits


class Parts(NamedTuple):
    """The unweighted parts, float32 scalars, in the order in which a run reports them."""

    heatmap: Float[Array, ""]  # mean over the two heatmaps
    score: Float[Array, ""]  # mean over the four scores
    keyword: Float[Array, ""]  # cross-entropy per target token, nats


def heatmap_values(logits: Float[Array, "b h w m"], target: Float[Array, "b h w m"], kind: str) -> Float[Array, "b m"]:
    """Loss of each heatmap of each example, mean over pixels.

    Args:
      logits: before the sigmoid.
      target: in [0,1].
      kind: "mse"; "weighted-mse": pixels weighted in proportion to target + 1/255, weights of mean 1
        (EvalMuse); "bce": cross-entropy with soft targets. All have the same optimum, the mean opinion.
    """
    if kind == "bce":
        return optax.sigmoid_binary_cross_entropy(logits, target).mean((1, 2))
    squared = jnp.square(jax.nn.sigmoid(logits) - target)
    if kind == "weighted-mse":
        weight = target + 1.0 / 255.0
        squared = squared * weight / weight.mean((1, 2), keepdims=True)
    return squared.mean((1, 2))


def score_values(logits: Float[Array, "b s"], target: Float[Array, "b s"], kind: str) -> Float[Array, "b s"]:
    """Loss of each score of each example: squared error, or cross-entropy with soft targets."""
    if kind == "bce":
        return optax.sigmoid_binary_cross_entropy(logits, target)
    return jnp.square(jax.nn.sigmoid(logits) - target)


def sequence_values(logits: Float[Array, "b t v"], target: Int[Array, "b t"]) -> Float[Array, "b t"]:
    """Cross-entropy of each target token in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, target)


def masked_mean(values: Float[Array, "*n"], mask: Bool[Array, "*n"]) -> Float[Array, ""]:
    """Mean over the entries whose mask is True; 0 if there are none. Masked entries may be non-finite."""
    total = jnp.where(mask, values, 0.0).sum()
    return total / jnp.maximum(mask.sum(), 1)


def _mean_of_labels(values: Float[Array, "b n"], mask: Bool[Array, "b n"]) -> Float[Array, ""]:
    """Each label's mean over the examples that have it, then the mean over labels that any example has."""
    each = jax.vmap(masked_mean, (1, 1))(values, mask)
    return masked_mean(each, mask.any(0))


def _sequence_mean(config: LossConfig, logits: Logits, batch: Batch, suffix_id: int | None) -> Float[Array, ""]:
    """Mean cross-entropy over target tokens, those that begin a suffix counted `suffix_weight` times."""
    values = sequence_values(logits.sequence, batch.target_ids)
    if suffix_id is None or config.suffix_weight == 1.0:
        return masked_mean(values, batch.target_mask)
    weights = jnp.where(batch.target_ids == suffix_id, config.suffix_weight, 1.0) * batch.target_mask
    return jnp.where(batch.target_mask, values * weights, 0.0).sum() / jnp.maximum(weights.sum(), 1.0)


def total(
    config: LossConfig,
    logits: Logits,
    batch: Batch,
    step: Int[Array, ""] | None = None,
    suffix_id: int | None = None,
) -> tuple[Float[Array, ""], Parts]:
    """The training loss and its parts.

    `step` counts from 0, None: behind every warm-up. `suffix_id` is the first piece of the suffix, None: no
    token weighs more than another.

    L = w_h · mean heatmap loss + w_s · mean score loss + w_k · cross-entropy of the target sequence.
    Missing labels, padding tokens and filling examples have weight 0.
    """
    # A masked value would still reach the gradient, as 0 times whatever it is: perhaps NaN.
    scores = jnp.where(batch.score_mask, batch.scores, 0.0)
    parts = Parts(
        _mean_of_labels(
            heatmap_values(logits.heatmaps, batch.heatmaps.astype(jnp.float32) / 255.0, config.heatmap_loss),
            batch.heatmap_mask,
        ),
        _mean_of_labels(score_values(logits.scores, scores, config.score_loss), batch.score_mask),
        _sequence_mean(config, logits, batch, suffix_id),
    )
    keyword_weight = config.keyword_weight
    if step is not None and config.keyword_warmup_steps:
        keyword_weight = keyword_weight * jnp.minimum((step + 1) / config.keyword_warmup_steps, 1.0)
    weights = Parts(config.heatmap_weight, config.score_weight, keyword_weight)
    return sum(w * p for w, p in zip(weights, parts)), parts
