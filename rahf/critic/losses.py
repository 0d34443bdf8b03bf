"""Per-example losses, and one place where masks, means and weights meet (RAHF, section 4.2)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from rahf.config import Config, LossConfig
from rahf.core.batch import Batch
from rahf.core.errors import ConfigError
from rahf.critic import label_prompts
from rahf.critic.networks import word_tags as tags_lib
from rahf.critic.networks.augmented_prompt import Slots, TaskLogits
from rahf.critic.networks.outputs import Logits


class Parts(NamedTuple):
    """The unweighted parts, float32 scalars, in the order in which a run reports them."""

    heatmap: Float[Array, ""]  # mean over the two heatmaps
    score: Float[Array, ""]  # mean over the four scores
    keyword: Float[Array, ""]  # cross-entropy per target token, nats
    tag: Float[Array, ""] | float = 0.0  # cross-entropy per image and word of the batch; 0 without a tag head


#: The parts that compare predictions with labels; the tag loss only helps learning, and knows its whole batch.
OF_LABELS = Parts._fields[:3]


def check(config: Config) -> None:
    """Raises ConfigError for a loss that the network has no head for, or the reverse."""
    if config.loss.contrastive != "none":
        raise ConfigError(
            f"loss.contrastive {config.loss.contrastive!r}: only a model of the family 'clip' learns so; set it to "
            f"'none' for the family {config.model.family!r}"
        )
    tag_head = getattr(config.model, "tag_head", False)
    if tag_head != (config.loss.tag_weight > 0):
        raise ConfigError(
            f"model.tag_head {tag_head} with loss.tag_weight {config.loss.tag_weight}: the head needs a "
            "weight above 0, the weight needs the head; set both or neither"
        )


def heatmap_values(
    logits: Float[Array, "b h w m"], target: Float[Array, "b h w m"], kind: str, place_weight: float = 0.0
) -> Float[Array, "b m"]:
    """Loss of each heatmap of each example: mean over pixels, and divergence of places.

    Args:
      logits: before the sigmoid.
      target: in [0,1].
      kind: "mse"; "weighted-mse": pixels weighted in proportion to target + 1/255, weights of mean 1
        (EvalMuse); "bce": cross-entropy with soft targets. All have the same optimum, the mean opinion.
      place_weight: of `place_values`, which is added.
    """
    if place_weight:
        return heatmap_values(logits, target, kind) + place_weight * place_values(logits, target)
    if kind == "bce":
        return optax.sigmoid_binary_cross_entropy(logits, target).mean((1, 2))
    squared = jnp.square(jax.nn.sigmoid(logits) - target)
    if kind == "weighted-mse":
        weight = target + 1.0 / 255.0
        squared = squared * weight / weight.mean((1, 2), keepdims=True)
    return squared.mean((1, 2))


def place_values(logits: Float[Array, "b h w m"], target: Float[Array, "b h w m"]) -> Float[Array, "b m"]:
    """Kullback-Leibler divergence of the prediction's map from the label's, both scaled to a sum of 1, in nats.

    It compares places only, not how hot they are; 0 for an empty label, which says nothing about places. A sum over
    pixels gives small marks the weight of large ones, which a mean over all pixels does not.
    """
    log_heat = jax.nn.log_sigmoid(logits)
    log_share = log_heat - jax.nn.logsumexp(log_heat, axis=(1, 2), keepdims=True)
    share = target / jnp.maximum(target.sum((1, 2), keepdims=True), 1e-6)
    return (jax.scipy.special.xlogy(share, share) - share * log_share).sum((1, 2))


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


class Counts(NamedTuple):
    """What the losses of a whole batch are divided by."""

    heatmaps: Int[Array, " m"]  # examples that have the label
    scores: Int[Array, " s"]
    tokens: Float[Array, ""]  # target tokens, weighted
    vocabulary: Int[Array, " v"] | None  # 1 for the pieces that any prompt says; None without a tag head
    examples: Int[Array, ""]  # with labels of words


def counts(
    config: LossConfig, batch: Batch, suffix_id: int | None = None, tags: int | None = None, soft: bool = False
) -> Counts:
    """What the losses of a batch are divided by; those of its parts then sum to that of the whole_counts.

    Args:
      config: weights of the losses.
      batch: the whole; its parts may have different labels.
      suffix_id: the piece that counts `suffix_weight` times, None if there is none.
      tags: size of the tag head's vocabulary, None without one.
      soft: words have shares of people (`Batch.other_shares`).
    """
    tokens = _token_weights(config, batch, suffix_id).sum()
    if soft:
        tokens = sum(weights.sum() for weights in _soft_weights(config, batch, suffix_id))
    vocabulary = None if tags is None else tags_lib.pieces_in_prompts(tags_lib.tag_targets(batch, tags))
    return Counts(batch.heatmap_mask.sum(0), batch.score_mask.sum(0), tokens, vocabulary, batch.word_mask.any(1).sum())


def _mean_of_labels(values: Float[Array, "b n"], mask: Bool[Array, "b n"], count: Int[Array, " n"]) -> Float[Array, ""]:
    """Each label's mean over the examples that have it, then the mean over labels that any example has."""
    each = jnp.where(mask, values, 0.0).sum(0) / jnp.maximum(count, 1)
    return masked_mean(each, count > 0)


def _token_weights(config: LossConfig, batch: Batch, suffix_id: int | None) -> Float[Array, "b t"]:
    """How much each target token counts; padding not at all."""
    weights = batch.target_mask.astype(jnp.float32)
    if suffix_id is None:
        return weights
    return weights * jnp.where(batch.target_ids == suffix_id, config.suffix_weight, 1.0)


def _soft_weights(
    config: LossConfig, batch: Batch, suffix_id: int | None
) -> tuple[Float[Array, "b t"], Float[Array, "b t"]]:
    """How much each target token counts, and how much the token of the other label, by their shares of people."""
    shares = jnp.where(batch.target_mask, batch.other_shares, 0.0)
    others = (
        shares if suffix_id is None else shares * jnp.where(batch.other_ids == suffix_id, config.suffix_weight, 1.0)
    )
    return (1.0 - shares) * _token_weights(config, batch, suffix_id), others


def _sequence_mean(
    config: LossConfig, logits: Logits, batch: Batch, suffix_id: int | None, count: Float[Array, ""], soft: bool = False
) -> Float[Array, ""]:
    """Mean cross-entropy over target tokens, those that begin a suffix counted `suffix_weight` times.

    With soft labels the target behind a word is a distribution over two tokens: the suffix, and what comes next.
    """
    if logits.sequence is None:
        return jnp.zeros(())
    if soft:
        pairs = zip(_soft_weights(config, batch, suffix_id), (batch.target_ids, batch.other_ids))
        values = sum(jnp.where(w > 0, w * sequence_values(logits.sequence, ids), 0.0).sum() for w, ids in pairs)
        return values / jnp.maximum(count, 1.0)
    values = sequence_values(logits.sequence, batch.target_ids)
    weights = _token_weights(config, batch, suffix_id)
    return jnp.where(batch.target_mask, values * weights, 0.0).sum() / jnp.maximum(count, 1.0)


def _tag_mean(logits: Float[Array, "b v"] | None, batch: Batch, whole_counts: Counts) -> Float[Array, ""]:
    """Mean over examples with labelled words and over the pieces that any prompt of the whole batch says."""
    if logits is None or whole_counts.vocabulary is None:
        return jnp.zeros(())
    tags = tags_lib.tag_targets(batch, logits.shape[1])
    weights = batch.word_mask.any(1)[:, None] * whole_counts.vocabulary
    values = jnp.where(weights > 0, tags_lib.tag_losses(logits, tags), 0.0)
    return values.sum() / jnp.maximum(whole_counts.vocabulary.sum() * whole_counts.examples, 1)


def _tag_size(tags: Float[Array, "b v"] | None) -> int | None:
    return None if tags is None else tags.shape[1]


def total(
    config: LossConfig,
    logits: Logits,
    batch: Batch,
    step: Int[Array, ""] | None = None,
    suffix_id: int | None = None,
    whole_counts: Counts | None = None,
    soft: bool = False,
) -> tuple[Float[Array, ""], Parts]:
    """The training loss and its parts.

    `step` counts from 0, None: behind every warm-up. `suffix_id` is the first piece of the suffix, None: no
    token weighs more than another. `whole_counts` are the counts of the batch of which this one is a
    part; None: this is the whole batch. `soft`: the words have shares of people (`Batch.other_shares`).

    L = w_h · mean heatmap loss + w_s · mean score loss + w_k · cross-entropy of the target sequence
    (+ w_t · cross-entropy of the tags, `rahf.critic.networks.word_tags`).
    Missing labels, padding tokens and filling examples have weight 0.
    """
    if whole_counts is None:
        whole_counts = counts(config, batch, suffix_id, _tag_size(logits.tags), soft)
    # A masked value would still reach the gradient, as 0 times whatever it is: perhaps NaN.
    scores = jnp.where(batch.score_mask, batch.scores, 0.0)
    parts = Parts(
        _mean_of_labels(
            heatmap_values(
                logits.heatmaps, batch.heatmaps.astype(jnp.float32) / 255.0, config.heatmap_loss, config.place_weight
            ),
            batch.heatmap_mask,
            whole_counts.heatmaps,
        ),
        _mean_of_labels(score_values(logits.scores, scores, config.score_loss), batch.score_mask, whole_counts.scores),
        _sequence_mean(config, logits, batch, suffix_id, whole_counts.tokens, soft),
        _tag_mean(logits.tags, batch, whole_counts),
    )
    return _weighted(config, parts, step), parts


def _weighted(config: LossConfig, parts: Parts, step: Int[Array, ""] | None) -> Float[Array, ""]:
    keyword_weight = config.keyword_weight
    if step is not None and config.keyword_warmup_steps:
        keyword_weight = keyword_weight * jnp.minimum((step + 1) / config.keyword_warmup_steps, 1.0)
    tag_weight = config.tag_weight
    if step is not None and config.tag_steps:
        tag_weight = tag_weight * jnp.maximum(1.0 - (1.0 - config.tag_rest) * step / config.tag_steps, config.tag_rest)
    weights = Parts(config.heatmap_weight, config.score_weight, keyword_weight, tag_weight)
    return sum(w * p for w, p in zip(weights, parts))


def sampled(
    config: LossConfig,
    drawn: TaskLogits,
    batch: Batch,
    step: Int[Array, ""] | None = None,
    suffix_id: int | None = None,
    whole_counts: Counts | None = None,
    soft: bool = False,
) -> tuple[Float[Array, ""], Parts]:
    """`total`, estimated from the tasks that were drawn: its expectation over draws is that of all tasks.

    A (task, label) pair counts as it would there, divided by the probability that it is drawn; the numbers of
    labels and tokens to divide by are those of the whole batch.
    """
    if whole_counts is None:
        whole_counts = counts(config, batch, suffix_id, _tag_size(drawn.tags), soft)
    chance = drawn.passes / label_prompts.COUNT
    maps = drawn.of_examples(batch.heatmaps, drawn.heatmap_slots)
    maps = jnp.take_along_axis(maps, drawn.heatmap_slots.tasks[:, None, None, None], 3).astype(jnp.float32) / 255.0
    scores = drawn.of_examples(jnp.where(batch.score_mask, batch.scores, 0.0), drawn.score_slots)
    scores = jnp.take_along_axis(scores, drawn.score_slots.tasks[:, None], 1)
    targets = [(batch.target_ids, _token_weights(config, batch, suffix_id))]
    if soft:
        targets = list(zip((batch.target_ids, batch.other_ids), _soft_weights(config, batch, suffix_id)))
    parts = Parts(
        _of_drawn(
            heatmap_values(drawn.heatmaps[..., None], maps, config.heatmap_loss)[:, 0],
            drawn,
            drawn.heatmap_slots,
            batch.heatmap_mask,
            whole_counts.heatmaps,
        ),
        _of_drawn(
            score_values(drawn.scores[:, None], scores, config.score_loss)[:, 0],
            drawn,
            drawn.score_slots,
            batch.score_mask,
            whole_counts.scores,
        ),
        sum(_tokens_of_drawn(drawn, *pair) for pair in targets) / (chance * jnp.maximum(whole_counts.tokens, 1.0)),
        _tag_mean(drawn.tags, batch, whole_counts),
    )
    return _weighted(config, parts, step), parts


def _tokens_of_drawn(drawn: TaskLogits, tokens: Int[Array, "b t"], weights: Float[Array, "b t"]) -> Float[Array, ""]:
    """Weighted cross-entropy of target tokens, summed over the places of the sequence head."""
    values = sequence_values(drawn.sequence, drawn.of_examples(tokens, drawn.sequence_slots))
    weights = drawn.of_examples(weights, drawn.sequence_slots) * drawn.sequence_slots.valid[:, None]
    return jnp.where(weights > 0, values * weights, 0.0).sum()


def _of_drawn(
    values: Float[Array, " m"], drawn: TaskLogits, slots: Slots, mask: Bool[Array, "b n"], count: Int[Array, " n"]
) -> Float[Array, ""]:
    """Estimate of `_mean_of_labels` from the places of one head."""
    has_label = jnp.take_along_axis(drawn.of_examples(mask, slots), slots.tasks[:, None], 1)[:, 0] & slots.valid
    divisors = jnp.maximum(count, 1)[slots.tasks] * jnp.maximum((count > 0).sum(), 1)
    return (jnp.where(has_label, values, 0.0) / divisors).sum() * label_prompts.COUNT / drawn.passes
