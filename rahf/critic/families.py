"""In what the critic families differ for the rest of the program: what they predict, which vocabulary they need.

No JAX here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from rahf.config import ClipBaselineConfig, CriticConfig, FamilyConfig, ResNetBaselineConfig
from rahf.core import labels
from rahf.core.batch import HEATMAPS, SCORES, Batch, Prediction
from rahf.core.errors import NotPredicted
from rahf.text import Tokenizer
from rahf.text.vocabulary import too_many_pieces


class Outputs(NamedTuple):
    """What a model predicts. All that it does not is NaN in a `Prediction`, and used nowhere.

    A network may have a head that no training example had a label for. Its output is arbitrary: `not_learnt` names it,
    and it counts as not predicted.
    """

    scores: tuple[str, ...] = SCORES
    heatmaps: tuple[str, ...] = HEATMAPS
    keywords: bool = True
    not_learnt: tuple[str, ...] = ()  # names as of `label_names`

    def learnt(self, counts: Mapping[str, int | None]) -> Outputs:
        """What is left without the heads that have seen no label.

        Args:
          counts: how many labels of each of `label_names` training has used; None: unknown, but some. Names that are
            missing were not counted, and stay.
        """
        return self.without([name for name in self.label_names if counts.get(name) == 0])

    @property
    def label_names(self) -> list[str]:
        """Names of the labels behind what is predicted: ``heatmap/<name>``, ``score/<name>``, ``keyword``."""
        names = [*(f"heatmap/{name}" for name in self.heatmaps), *(f"score/{name}" for name in self.scores)]
        return [*names, *(["keyword"] if self.keywords else [])]

    def without(self, names: Any) -> Outputs:
        """What is left without some `label_names`, which count as not learnt."""
        missing = tuple(name for name in self.label_names if name in names)
        return Outputs(
            tuple(name for name in self.scores if f"score/{name}" not in missing),
            tuple(name for name in self.heatmaps if f"heatmap/{name}" not in missing),
            self.keywords and "keyword" not in missing,
            self.not_learnt + missing,
        )

    def note(self) -> str | None:
        """One line about what was not learnt; None if nothing is missing."""
        if not self.not_learnt:
            return None
        names = ", ".join(self._in_words(name) for name in self.not_learnt)
        return f"not learnt, and so not predicted: {names}; no example that it was trained on had such a label"

    @staticmethod
    def _in_words(label_name: str) -> str:
        kind, _, name = label_name.partition("/")
        return {"heatmap": f"{name} heatmap", "score": f"{name} score"}.get(kind, "misaligned words")

    def check_score(self, score: str | Mapping[str, float]) -> None:
        """Refuses a score, or weights by name, of which a part is not predicted.

        Raises:
          UnknownNameError, ArgumentError: as `rahf.core.labels.weights`.
          NotPredicted: names what is missing, and what is predicted.
        """
        used = np.flatnonzero(labels.weights(score))
        self._refuse("score", [SCORES[i] for i in used if SCORES[i] not in self.scores], self.scores)

    def check_heatmap(self, name: str) -> None:
        """Refuses a heatmap that is not predicted. Raises UnknownNameError or NotPredicted, as `check_score`."""
        labels.position("heatmap", name, HEATMAPS)
        self._refuse("heatmap", [name] if name not in self.heatmaps else [], self.heatmaps)

    def _refuse(self, kind: str, missing: list[str], predicted: tuple[str, ...]) -> None:
        if not missing:
            return
        never = any(f"{kind}/{name}" in self.not_learnt for name in missing)
        why = ": no example that it was trained on had such a label" if never else ""
        raise NotPredicted(
            f"{kind}: this model does not predict {' and '.join(map(repr, missing))}{why}; it predicts "
            f"{', '.join(predicted) or f'no {kind} at all'}"
        )

    def hide(self, prediction: Prediction, where: Any = np.where) -> Prediction:
        """The prediction with NaN in the place of what is not predicted. `where`: of NumPy or of JAX."""
        heatmaps, scores, words = prediction
        return Prediction(
            heatmaps if heatmaps is None else self.hide_heatmaps(heatmaps, where),
            self.hide_scores(scores, where),
            words if words is None or self.keywords else where(False, words, np.float32(np.nan)),
        )

    def hide_scores(self, scores: Any, where: Any = np.where) -> Any:
        """[..., 4] with NaN in the columns that are not predicted."""
        return scores if all(self.score_mask) else where(np.array(self.score_mask), scores, np.float32(np.nan))

    def hide_heatmaps(self, heatmaps: Any, where: Any = np.where) -> Any:
        """[..., 2] with NaN in the maps that are not predicted."""
        return heatmaps if all(self.heatmap_mask) else where(np.array(self.heatmap_mask), heatmaps, np.float32(np.nan))

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
        if self[:3] == Outputs()[:3]:
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
        if family in ("heatmaps", "regions"):
            return name in self.heatmaps
        if family == "loss":
            predicted = {"heatmap": self.heatmaps, "score": self.scores, "keyword": self.keywords}
            return bool(predicted.get(name, True))
        return self.keywords or not family.startswith("keywords")

    def predicted(self, prediction: Prediction) -> dict[str, np.ndarray]:
        """The arrays of a prediction by name, without what is not predicted."""
        heatmaps, scores, words = prediction
        arrays = {"scores": np.asarray(scores)[..., np.array(self.score_mask)]}
        if heatmaps is not None:
            arrays |= {"heatmaps": np.asarray(heatmaps)[..., np.array(self.heatmap_mask)]}
        if words is not None and self.keywords:
            arrays |= {"word_probabilities": np.asarray(words)}
        return arrays


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
