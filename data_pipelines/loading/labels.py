"""Labels and pictures of a split as stored, for evaluations: maps keep their own resolution."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from data_pipelines.loading.examples import RecordSequence
from data_pipelines.store.records import Record
from rahf import images
from rahf.core.batch import HEATMAPS


class Truth(NamedTuple):
    """The labels of one example as they were stored."""

    record: Record
    heatmaps: np.ndarray  # uint8 [h,w,2] at native resolution, order HEATMAPS, 0 where missing
    heatmap_mask: np.ndarray  # bool [2]
    # For each heatmap bool [n,h,w], the maps of its annotators; None where they were not kept.
    annotators: tuple[np.ndarray | None, ...] = (None,) * len(HEATMAPS)

    def image(self) -> np.ndarray:
        """The picture, uint8 [h,w,3]; a damaged JPEG as it is repaired, which the loader notes."""
        return images.load_rgb(self.record.image, what=self.record.uid, on_damage=lambda _: None)


class Labels:
    """Random access to the stored labels of a split."""

    def __init__(self, source: RecordSequence):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Truth:
        record = self.source[int(index)]
        encoded = (record.implausibility, record.misalignment)
        maps = [
            None if data is None else images.load_grey(data, what=f"{record.uid}: {name} map")
            for data, name in zip(encoded, HEATMAPS)
        ]
        shape = next((m.shape for m in maps if m is not None), (1, 1))
        for values in maps:
            if values is not None and values.shape != shape:
                raise images.ImageError(f"{record.uid}: its two maps differ in size, {shape} and {values.shape}")
        empty = np.zeros(shape, np.uint8)
        stacked = np.stack([empty if m is None else m for m in maps], -1)
        kept = tuple(_annotators(getattr(record, f"annotator_{name}"), record.uid, name) for name in HEATMAPS)
        return Truth(record, stacked, np.array([m is not None for m in maps]), kept)


def _annotators(encoded: tuple[bytes, ...], uid: str, name: str) -> np.ndarray | None:
    if not encoded:
        return None
    return np.stack([images.load_grey(one, what=f"{uid}: {name} map of an annotator") > 127 for one in encoded])
