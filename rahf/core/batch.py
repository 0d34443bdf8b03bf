"""The two structures that travel through the program: `Batch` in, `Prediction` out.

Both are NamedTuples: pytrees for JAX, and importable by data workers, which must not import JAX.

Dimension names used in every docstring: B batch, H and W image height and width in pixels, L prompt
tokens, T target tokens, K words of a prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from rahf.core import labels
from rahf.core.errors import ArgumentError
from rahf.core.labels import HEATMAPS, SCORES

__all__ = ["HEATMAPS", "SCORES", "Array", "Batch", "Prediction", "fake", "spec"]

Array = Any  # numpy.ndarray in the loader, jax.Array inside a step


class Batch(NamedTuple):
    """One batch of image-prompt pairs with the seven labels of rich feedback.

    A missing label has mask False and weight 0 everywhere: in losses, metrics and counts. In a padding
    example (`example_mask` False) every other mask is False, too.
    """

    image: Array  # uint8 [B,H,W,3] RGB 0..255, or float32 in [0,1]
    text_ids: Array  # int32 [B,L] prompt pieces, end-of-sequence id last, then padding id 0
    text_mask: Array  # bool [B,L] True where text_ids is not padding
    target_ids: Array  # int32 [B,T] words with suffix "_0" on misaligned ones, end id, padding
    target_mask: Array  # bool [B,T] True where target_ids counts in the loss
    prompt_ids: Array  # int32 [B,T] the same words without any suffix: input of constrained scoring
    word_end: Array  # int32 [B,K] index into prompt_ids of a word's last piece; -1 if it was cut off
    word_labels: Array  # int32 [B,K] 1 = aligned, 0 = misaligned
    word_mask: Array  # bool [B,K] True for words that exist and are labelled
    heatmaps: Array  # uint8 [B,H,W,2] in order HEATMAPS, 255 = every annotator marked it
    heatmap_mask: Array  # bool [B,2]
    scores: Array  # float32 [B,4] in order SCORES, 0 where missing
    score_mask: Array  # bool [B,4]
    example_mask: Array  # bool [B] False for padding examples, which fill up the last batch
    index: Array  # int64 [B] position of the example in its split, -1 for padding
    # Soft word labels: at the token where the suffix of a word stands or could stand, the token of the other label, and
    # its share of people. Elsewhere 0 and 0. None: labels are the majority's only.
    other_ids: Array = None  # int32 [B,T]
    other_shares: Array = None  # float32 [B,T] in [0,1]


class Prediction(NamedTuple):
    """The network's outputs for a batch, float32. A baseline that predicts only some of them gives NaN for the rest.

    An exported file of scores only gives None for `heatmaps` and `word_probabilities`.
    """

    heatmaps: Array  # float32 [B,H,W,2] in [0,1], order HEATMAPS
    scores: Array  # float32 [B,4] in [0,1], order SCORES
    word_probabilities: Array  # float32 [B,K] in [0,1]: how likely each word is misaligned

    def score(self, score: str | Mapping[str, float] = "overall") -> Array:
        """One score of every image, float32 [B], high = good.

        Args:
          score: a name of `SCORES`, or weights by name, which give the weighted sum.

        Raises:
          ValueError: an unknown score; suggests the nearest.
        """
        return labels.weighted(self.scores, score)

    def heatmap(self, name: str) -> Array:
        """One heatmap of every image, float32 [B,H,W], high = bad.

        Args:
          name: one of `HEATMAPS`.

        Raises:
          ValueError: an unknown heatmap (suggests the nearest), or a prediction without heatmaps.
        """
        index = labels.position("heatmap", name, HEATMAPS)
        if self.heatmaps is None:
            raise ArgumentError("this prediction holds scores only; heatmaps need a run, or a file exported with them")
        return self.heatmaps[..., index]


def spec(
    batch_size: int, image_size: int, text_length: int, target_length: int, max_words: int
) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of every field of a `Batch`, by field name."""
    b, s, n, t, k = batch_size, image_size, text_length, target_length, max_words
    shapes = {
        "image": ((b, s, s, 3), np.uint8),
        "text_ids": ((b, n), np.int32),
        "text_mask": ((b, n), np.bool_),
        "target_ids": ((b, t), np.int32),
        "target_mask": ((b, t), np.bool_),
        "prompt_ids": ((b, t), np.int32),
        "word_end": ((b, k), np.int32),
        "word_labels": ((b, k), np.int32),
        "word_mask": ((b, k), np.bool_),
        "heatmaps": ((b, s, s, 2), np.uint8),
        "heatmap_mask": ((b, 2), np.bool_),
        "scores": ((b, 4), np.float32),
        "score_mask": ((b, 4), np.bool_),
        "example_mask": ((b,), np.bool_),
        "index": ((b,), np.int64),
        "other_ids": ((b, t), np.int32),
        "other_shares": ((b, t), np.float32),
    }
    return {name: (shape, np.dtype(dtype)) for name, (shape, dtype) in shapes.items()}


def fake(
    batch_size: int = 2,
    image_size: int = 32,
    text_length: int = 12,
    target_length: int = 12,
    max_words: int = 6,
    vocab_size: int = 64,
    seed: int = 0,
) -> Batch:
    """A random but well-formed batch, for tests, shape checks and benchmarks.

    Every example has at least two words; lengths differ between examples, so that padding occurs.
    """
    rng = np.random.default_rng(seed)
    fields = {
        name: np.zeros(shape, dtype)
        for name, (shape, dtype) in spec(batch_size, image_size, text_length, target_length, max_words).items()
    }
    fields["image"] = rng.integers(0, 256, fields["image"].shape, dtype=np.uint8)
    fields["heatmaps"] = rng.choice(
        np.array([0, 85, 170, 255], np.uint8), fields["heatmaps"].shape, p=[0.7, 0.1, 0.1, 0.1]
    )
    fields["scores"] = rng.random(fields["scores"].shape, dtype=np.float32)
    for name in ("heatmap_mask", "score_mask", "example_mask"):
        fields[name][:] = True
    fields["index"][:] = np.arange(batch_size)
    fields["word_end"][:] = -1
    longest = min(max_words, text_length - 1, (target_length - 1) // 2)
    for i in range(batch_size):
        word_count = int(rng.integers(2, longest + 1))
        word_labels = rng.integers(0, 2, word_count)
        pieces = rng.integers(5, vocab_size, word_count)
        target: list[int] = []
        for piece, label in zip(pieces, word_labels):
            target += [piece] if label else [piece, 4]
        for name, ids in (
            ("text_ids", [*pieces, 1]),
            ("target_ids", [*target, 1]),
            ("prompt_ids", [*pieces, 1]),
        ):
            fields[name][i, : len(ids)] = ids
        fields["text_mask"][i, : word_count + 1] = True
        fields["target_mask"][i, : len(target) + 1] = True
        fields["word_end"][i, :word_count] = np.arange(word_count)
        fields["word_labels"][i, :word_count] = word_labels
        fields["word_mask"][i, :word_count] = True
    return Batch(**fields)
