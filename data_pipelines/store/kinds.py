"""What a dataset stores: rich feedback, or records of another kind, in the same files and by the same program."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.store import layout, schema
from data_pipelines.store.records import Record
from data_pipelines.store.tf_example import Values
from rahf.core.batch import SCORES
from rahf.core.errors import DatasetError


class Kind(NamedTuple):
    """A kind of record. Records have a field `uid`, unique in a dataset.

    Attributes:
      name, version: of the dataset for TFDS.
      features: names of optional fields → `tfds.features.FeaturesDict`; imports TFDS.
      to_example: a record → values for `encode_example` of the features.
      from_example: the values of a parsed example → the record; raises KeyError for a field that is not there, and
        ValueError or IndexError for one of another shape.
      check: a record and where it stands → raises DatasetError if it is malformed.
    """

    name: str
    version: str
    features: Callable[[Collection[str]], Any]
    to_example: Callable[[Any], dict[str, Any]]
    from_example: Callable[[Mapping[str, Values]], Any]
    check: Callable[[Any, str], None]


def _check_feedback(record: Record, where: str) -> None:
    if record.word_labels is not None and len(record.word_labels) != len(record.words):
        raise DatasetError(f"{where}: {len(record.words)} words but {len(record.word_labels)} word labels")
    if record.word_shares is not None and len(record.word_shares) != len(record.words):
        raise DatasetError(f"{where}: {len(record.words)} words but shares for {len(record.word_shares)}")
    if np.shape(record.scores) != (len(SCORES),):
        raise DatasetError(f"{where}: scores have shape {np.shape(record.scores)}, expected ({len(SCORES)},)")
    if not record.image:
        raise DatasetError(f"{where}: the image is empty")


#: Image-prompt pairs with labels, what most of this project's datasets hold.
FEEDBACK = Kind(layout.NAME, layout.VERSION, schema.features, schema.to_example, schema.from_example, _check_feedback)
