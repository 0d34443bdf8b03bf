"""The base of all metric families: values per example, kept by index, so that batches and processes merge.

A metric is a function of *weights* on examples. Weights of 1 give the metric. The counts of a bootstrap resample, taken
as weights, give the metric of that resample. So a value and its interval always follow the same definition.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # whoever only reads an exported model does without
    from jaxtyping import Float, Integer


class Accumulator(abc.ABC):
    """Collects per-example arrays. Every array's first axis is the example.

    The index in the split identifies an example. An example counts once, even if it is added several times; the first
    addition stays. A negative index marks filling, which never counts. So neither the padding of the last batch nor
    overlapping shards of two processes change a metric.
    """

    def __init__(self) -> None:
        self._chunks: list[dict[str, np.ndarray]] = []

    @abc.abstractmethod
    def _empty(self) -> dict[str, np.ndarray]:
        """The arrays of zero examples, besides `index`: names, trailing shapes and dtypes."""

    @abc.abstractmethod
    def statistics(self, weights: Float[np.ndarray, "R N"]) -> dict[str, Float[np.ndarray, " R"]]:
        """Every metric for each of R weightings of the examples.

        Args:
          weights: float64 [R,N], non-negative multiplicities of the examples in the order of `to_arrays`.

        Returns:
          Metric name → float64 [R]; NaN where a metric is undefined.
        """

    @abc.abstractmethod
    def counts(self) -> dict[str, float]:
        """Numbers of examples, maps or words from which the metrics are computed, by name."""

    def __len__(self) -> int:
        """Number of different examples."""
        return len(self.to_arrays()["index"])

    def compute(self) -> dict[str, float]:
        """All metrics and counts. NaN where a metric is undefined (no labels, nothing to find)."""
        values = self.statistics(np.ones((1, len(self))))
        return {name: float(value[0]) for name, value in values.items()} | self.counts()

    def merge(self, other: "Accumulator") -> "Accumulator":
        """Adds another accumulator's examples to this one, which is returned."""
        if type(other) is not type(self):
            raise TypeError(f"cannot merge {type(other).__name__} into {type(self).__name__}")
        self._chunks += other._chunks
        return self

    def to_arrays(self, rows: int | None = None) -> dict[str, np.ndarray]:
        """The state as plain arrays, duplicates removed, sorted by index.

        Args:
          rows: pad with filling (index -1) to this many examples, for exchange between processes that
            need equal shapes.

        Returns:
          Array name → array, every one with the same first axis.

        Raises:
          ValueError: there are more examples than `rows`.
        """
        self._chunks = [self._joined()]
        arrays = dict(self._chunks[0])
        if rows is None:
            return arrays
        count = len(arrays["index"])
        if count > rows:
            raise ValueError(f"{type(self).__name__}: {count} examples do not fit into {rows} rows")
        for name, array in arrays.items():
            filling = np.full((rows - count, *array.shape[1:]), -1 if name == "index" else 0, array.dtype)
            arrays[name] = np.concatenate([array, filling])
        return arrays

    def add_arrays(self, arrays: Mapping[str, np.ndarray]) -> "Accumulator":
        """Adds the arrays of another process's `to_arrays`. Returns this accumulator.

        Raises:
          ValueError: arrays are missing, unknown, or of different lengths.
        """
        expected = {"index", *self._empty()}
        if set(arrays) != expected:
            raise ValueError(f"{type(self).__name__}: expected arrays {sorted(expected)}, found {sorted(arrays)}")
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"{type(self).__name__}: arrays of different lengths {lengths}")
        self._add(arrays["index"], **{name: arrays[name] for name in self._empty()})
        return self

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], **options: Any) -> "Accumulator":
        """The inverse of `to_arrays`; `options` go to the constructor."""
        accumulator = cls(**options)
        accumulator.add_arrays(arrays)
        return accumulator

    def _add(self, index: Integer[np.ndarray, " N"], **arrays: np.ndarray) -> None:
        index = np.asarray(index, np.int64)
        real = index >= 0
        self._chunks.append({"index": index[real], **{n: np.asarray(a)[real] for n, a in arrays.items()}})

    def _joined(self) -> dict[str, np.ndarray]:
        """All chunks as one, each example once, sorted by index."""
        if len(self._chunks) == 1 and _strictly_rising(self._chunks[0]["index"]):
            return self._chunks[0]
        empty = {"index": np.zeros(0, np.int64), **self._empty()}
        joined = {name: _concatenate([c[name] for c in [empty, *self._chunks]]) for name in empty}
        _, first = np.unique(joined["index"], return_index=True)  # first = earliest addition
        return {name: array[first] for name, array in joined.items()}


def _strictly_rising(index: np.ndarray) -> bool:
    return bool(np.all(np.diff(index) > 0))


def _concatenate(arrays: list[np.ndarray]) -> np.ndarray:
    """Along the first axis; the others are padded with zeros (False) to the largest: numbers of words differ."""
    shape = np.max([array.shape[1:] for array in arrays], axis=0).astype(int)
    padded = []
    for array in arrays:
        widths = [(0, 0), *((0, int(most - size)) for most, size in zip(shape, array.shape[1:]))]
        padded.append(np.pad(array, widths) if any(after for _, after in widths) else array)
    return np.concatenate(padded).astype(arrays[0].dtype, copy=False)


def weighted_mean(
    values: Float[np.ndarray, " N"], keep: np.ndarray, weights: Float[np.ndarray, "R N"]
) -> Float[np.ndarray, " R"]:
    """Mean of `values` over examples where `keep` holds, for each weighting; NaN where none has weight."""
    keep = keep & np.isfinite(values)
    total = weights @ keep.astype(np.float64)
    return divide(weights @ np.where(keep, values, 0.0), total)


def divide(numerator: np.ndarray | float, denominator: np.ndarray | float, otherwise: float = np.nan) -> np.ndarray:
    """Elementwise quotient; `otherwise` where the denominator is zero."""
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    result = np.full(numerator.shape, otherwise, np.float64)
    np.divide(numerator, denominator, out=result, where=denominator != 0)
    return result
