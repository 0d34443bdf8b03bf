"""In what the critic families differ for the rest of the program: what they predict, which vocabulary they need.

No JAX here.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rahf.config import ClipBaselineConfig, CriticConfig, FamilyConfig, ResNetBaselineConfig
from rahf.core.batch import HEATMAPS, SCORES, Batch, Prediction
from rahf.text import Tokenizer
from rahf.text.vocabulary import too_many_pieces


class Outputs(NamedTuple):
    """What a network predicts. All that it does not is NaN in its `Logits` and in a `Prediction`."""

    scores: tuple[str, ...] = SCORES
    heatmaps: tuple[str, ...] = HEATMAPS
    keywords: bool = True

    @property
    def score_mask(self) -> tuple[bool, ...]:
        """For each of SCORES, whether it is predicted."""
        return tuple(name in self.scores for name in SCORES)

    @property
    def heatmap_mask(self) -> tuple[bool, ...]:
        """For each of HEATMAPS, whether it is predicted."""
        return tuple(name in self.heatmaps for name in HEATMAPS)

    def narrow(self, batch: Batch) -> Batch:
        """The batch without the labels of what is not predicted: losses and metrics then leave them out."""
        if self == Outputs():
            return batch
        batch = batch._replace(
            score_mask=batch.score_mask & np.array(self.score_mask),
            heatmap_mask=batch.heatmap_mask & np.array(self.heatmap_mask),
        )
        if self.keywords:
            return batch
        return batch._replace(target_mask=batch.target_mask & False, word_mask=batch.word_mask & False)

    def covers(self, metric: str) -> bool:
        """Whether a metric of this name can be measured; a mean over scores needs all of them."""
        family, _, rest = metric.partition("/")
        name = rest.partition("/")[0]
        if family == "scores":
            return name in self.scores or (name == "mean" and len(self.scores) == len(SCORES))
        if family == "heatmaps":
            return name in self.heatmaps
        if family == "loss":
            predicted = {"heatmap": self.heatmaps, "score": self.scores, "keyword": self.keywords}
            return bool(predicted.get(name, True))
        return self.keywords or not family.startswith("keywords")

    def predicted(self, prediction: Prediction) -> dict[str, np.ndarray]:
        """The arrays of a prediction by name, without what is not predicted."""
        arrays = {
            "heatmaps": np.asarray(prediction.heatmaps)[..., np.array(self.heatmap_mask)],
            "scores": np.asarray(prediction.scores)[..., np.array(self.score_mask)],
        }
        return arrays | ({"word_probabilities": np.asarray(prediction.word_probabilities)} if self.keywords else {})


def is_critic(config: FamilyConfig) -> bool:
    """Whether a model of this config predicts feedback: the paper's network or a baseline of it."""
    return isinstance(config, (CriticConfig, ResNetBaselineConfig, ClipBaselineConfig))


def outputs(config: FamilyConfig) -> Outputs:
    """What the configured network predicts."""
    if isinstance(config, ResNetBaselineConfig):
        return Outputs(keywords=False)
    if isinstance(config, ClipBaselineConfig):
        scores = SCORES if config.clip.scores == "trained" else config.clip.cosine_scores
        return Outputs(scores, ("misalignment",) if config.clip.heatmap != "none" else (), False)
    return Outputs()


def vocabulary_problem(config: FamilyConfig, tokenizer: Tokenizer) -> str | None:
    """Why a vocabulary cannot be the network's, in words that name both sizes; None if it can."""
    if isinstance(config, ResNetBaselineConfig):  # reads no text
        return None
    if not isinstance(config, ClipBaselineConfig):
        return too_many_pieces(tokenizer, config.t5.vocab_size, "t5")
    rows, end = config.clip.text.vocab_size, config.clip.text.eos_token_id
    expected = tokenizer.vocab_size - 1 if end == 2 else end  # 2 stands for the highest id
    if problem := too_many_pieces(tokenizer, rows, "clip.text"):
        return problem
    if tokenizer.eos_id != expected:
        return (
            f"the vocabulary {tokenizer.source} of {tokenizer.vocab_size} pieces ends a text with id "
            f"{tokenizer.eos_id}, but this CLIP reads it at {expected} (model.clip.text.eos_token_id {end}, "
            f"{rows} rows); give the folder of its own vocabulary (tokenizer.json, or vocab.json and merges.txt)"
        )
    return None
