"""One `Record` per image-prompt pair, and which of its labels are missing."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from rahf.core.batch import SCORES


class Record(NamedTuple):
    """One labelled image-prompt pair as stored. Missing labels: None, or NaN among the scores."""

    uid: str  # unique in the dataset
    prompt: str
    words: tuple[str, ...]  # split_words(prompt)
    word_labels: tuple[int, ...] | None  # 1 = aligned, 0 = misaligned; as many as words
    image: bytes  # encoded, JPEG or PNG or WebP, upright RGB
    implausibility: bytes | None  # PNG, 8 bit grey, any size, 255 = every annotator; may be smaller than the image
    misalignment: bytes | None
    scores: np.ndarray  # float32 [4] in order rahf.core.batch.SCORES, NaN = missing
    # Stored only in datasets that were written with them (`write_dataset(optional=…)`):
    word_shares: tuple[float, ...] | None = (
        None  # share of people who called each word aligned; None: only the majority
    )
    annotator_implausibility: tuple[bytes, ...] = ()  # map of each annotator, PNG, 8 bit grey, 0 or 255; (): not kept
    annotator_misalignment: tuple[bytes, ...] = ()
    # float32 [F,4], columns FIXATION_COLUMNS; None: not recorded. Where people looked (`data_pipelines.gaze`).
    fixations: np.ndarray | None = None
    saliency: bytes | None = (
        None  # PNG, 16 bit grey, density of fixations up to a factor; may be smaller than the image
    )
    # uint8 [S,S,3], what a network of this size sees of the image; None: not computed yet (`rahf prepare squares`).
    square: np.ndarray | None = None


#: Columns of `Record.fixations`: x from the left and y from the top in pixels of the stored image, whose corners are
#: (0, 0) and (width, height); number of the viewer, -1 if unknown; milliseconds, NaN if unknown.
FIXATION_COLUMNS = ("x", "y", "viewer", "duration")


def missing_labels(labels: Any) -> list[str]:
    """Names of the labels that are missing in a `Record`, or in anything else with its four label fields."""
    named = {name: None if math.isnan(score) else score for name, score in zip(SCORES, labels.scores, strict=True)}
    named |= {"implausibility": labels.implausibility, "misalignment": labels.misalignment}
    named["words"] = labels.word_labels
    return [name for name, value in named.items() if value is None]
