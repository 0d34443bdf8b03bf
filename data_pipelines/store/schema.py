"""Fields of a stored record: `Record` ↔ the features that TFDS describes and stores.

A missing label has no place in these features. ``has_word_labels``, ``has_implausibility`` and ``has_misalignment`` say
whether the label is there; a missing score is NaN. The fields of `OPTIONAL` are stored only where a dataset has them:
every other dataset has the same bytes as before there were such fields.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.store.records import FIXATION_COLUMNS, Record
from data_pipelines.store.tf_example import Values
from rahf.core.batch import HEATMAPS, SCORES

#: Fields of a record that a dataset may lack.
OPTIONAL = ("word_shares", *(f"annotator_{name}" for name in HEATMAPS), "fixations", "saliency", "square")
_REQUIRED = tuple(name for name in Record._fields if name not in OPTIONAL)
_FIELDS = (*_REQUIRED, "has_word_labels", *(f"has_{name}" for name in HEATMAPS))


def features(optional: Collection[str] = ()) -> Any:
    """The `tfds.features.FeaturesDict` of a record.

    Args:
      optional: names of `OPTIONAL` that are stored, too.
    """
    import tensorflow_datasets as tfds  # heavy, and only needed to write

    grey = {"shape": (None, None, 1), "encoding_format": "png"}
    more: dict[str, Any] = {
        "word_shares": tfds.features.Sequence(tfds.features.Scalar(np.float32)),
        **{f"annotator_{name}": tfds.features.Sequence(tfds.features.Image(**grey)) for name in HEATMAPS},
        "fixations": tfds.features.Tensor(shape=(None, len(FIXATION_COLUMNS)), dtype=np.float32),
        "saliency": tfds.features.Image(**grey, dtype=np.uint16),
        # Not as PNG: decoding that takes as long as decoding a JPEG. Nor compressed: see `write`.
        "square": tfds.features.Tensor(shape=(None, None, 3), dtype=np.uint8, encoding="bytes"),
    }
    return tfds.features.FeaturesDict(
        {
            **{name: more[name] for name in OPTIONAL if name in optional},
            "uid": tfds.features.Text(),
            "prompt": tfds.features.Text(),
            "words": tfds.features.Sequence(tfds.features.Text()),
            "word_labels": tfds.features.Sequence(tfds.features.Scalar(np.int64)),
            "image": tfds.features.Image(shape=(None, None, 3)),
            "implausibility": tfds.features.Image(**grey),
            "misalignment": tfds.features.Image(**grey),
            "scores": tfds.features.Tensor(shape=(len(SCORES),), dtype=np.float32),
            "has_word_labels": tfds.features.Scalar(np.bool_),
            "has_implausibility": tfds.features.Scalar(np.bool_),
            "has_misalignment": tfds.features.Scalar(np.bool_),
        }
    )


def to_example(record: Record) -> dict[str, Any]:
    """Values for `encode_example` of `features`; a dataset without a field of `OPTIONAL` leaves that out."""
    example = record._asdict()
    for name in HEATMAPS:
        example[f"has_{name}"] = example[name] is not None
        example[name] = io.BytesIO(_empty_map() if example[name] is None else example[name])
    example["has_word_labels"] = record.word_labels is not None
    example["word_labels"] = list(record.word_labels or ())
    example["words"] = list(record.words)
    example["word_shares"] = np.asarray(record.word_shares or (), np.float32)
    for name in (f"annotator_{name}" for name in HEATMAPS):
        example[name] = [io.BytesIO(encoded) for encoded in example[name]]
    if record.fixations is None:
        example["fixations"] = np.zeros((0, len(FIXATION_COLUMNS)), np.float32)
    example["saliency"] = io.BytesIO(record.saliency or _empty_map())
    if record.square is None:
        example["square"] = np.zeros((1, 1, 3), np.uint8)  # as `_empty_map`
    example["image"] = io.BytesIO(record.image)
    example["scores"] = np.asarray(record.scores, np.float32)
    return example


def from_example(example: Mapping[str, Values]) -> Record:
    """The record that a parsed example holds.

    Raises:
      KeyError: a field is missing.
      ValueError, IndexError: a field has no value, or another shape.
    """
    for name in _FIELDS:
        if name not in example:
            raise KeyError(name)
    scores = np.array(example["scores"], np.float32)
    if scores.shape != (len(SCORES),):
        raise ValueError(f"scores have shape {scores.shape}")
    return Record(
        uid=example["uid"][0].decode(),
        prompt=example["prompt"][0].decode(),
        words=tuple(word.decode() for word in example["words"]),
        word_labels=tuple(example["word_labels"]) if example["has_word_labels"][0] else None,
        image=example["image"][0],
        implausibility=example["implausibility"][0] if example["has_implausibility"][0] else None,
        misalignment=example["misalignment"][0] if example["has_misalignment"][0] else None,
        scores=scores,
        word_shares=tuple(example.get("word_shares") or ()) or None,
        annotator_implausibility=tuple(example.get("annotator_implausibility") or ()),
        annotator_misalignment=tuple(example.get("annotator_misalignment") or ()),
        fixations=_fixations(example.get("fixations")),
        saliency=(example.get("saliency") or [None])[0],
        square=_square(example.get("square/shape"), example.get("square/value")),
    )


def _fixations(values: Values | None) -> np.ndarray | None:
    return None if not values else np.array(values, np.float32).reshape(-1, len(FIXATION_COLUMNS))


def _square(shape: Values | None, pixels: Values | None) -> np.ndarray | None:
    return np.frombuffer(pixels[0], np.uint8).reshape(shape) if shape and shape[0] > 1 else None


def to_features(record: Record) -> dict[str, Values]:
    """The inverse of `from_example`, without TFDS; for records on their way from one pass to the next."""
    values: dict[str, Values] = {
        "uid": [record.uid.encode()],
        "prompt": [record.prompt.encode()],
        "words": [word.encode() for word in record.words],
        "word_labels": list(record.word_labels or ()),
        "image": [record.image],
        "scores": [float(score) for score in record.scores],
        "has_word_labels": [int(record.word_labels is not None)],
        "word_shares": [float(share) for share in record.word_shares or ()],
    }
    for name in HEATMAPS:
        encoded = getattr(record, name)
        values[name] = [encoded or b""]
        values[f"has_{name}"] = [int(encoded is not None)]
        values[f"annotator_{name}"] = list(getattr(record, f"annotator_{name}"))
    if record.fixations is not None:
        values["fixations"] = [float(value) for value in record.fixations.ravel()]
    if record.saliency is not None:
        values["saliency"] = [record.saliency]
    if record.square is not None:
        values["square/shape"], values["square/value"] = list(record.square.shape), [record.square.tobytes()]
    return values


@functools.cache
def _empty_map() -> bytes:
    """Stands for a missing map, so that TFDS' own decoding works: one black pixel."""
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, "PNG")
    return buffer.getvalue()
