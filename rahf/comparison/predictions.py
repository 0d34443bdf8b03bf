"""The predictions file: JSONL with what any model predicts, one line per picture. docs/report.md describes it.

A line is read strictly, because another program wrote it. What cannot be used is refused with the reason, and counted.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from rahf import images
from rahf.core import json_text, names
from rahf.core.batch import HEATMAPS, SCORES
from rahf.core.errors import DataError, ImageError, RahfError
from rahf.core.files import check_not_lfs_pointer, open_regular
from rahf.images.decode import read_file
from rahf.scoring import files

#: Fields of a line. Others are counted, and not read.
FIELDS = (
    "uid", "image", "prompt", "model", "scores", "word_labels", "word_probabilities", *HEATMAPS,
)  # fmt: skip
#: Kinds of refusals, in the order in which they are listed.
REFUSALS = (
    "malformed", "bad score", "bad words", "bad map", "no such example", "another prompt", "word mismatch", "twice",
)  # fmt: skip
_MAX_LINE = 1_000_000  # bytes
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class RefusedLine(NamedTuple):
    """A line that is not used, and why."""

    line: int
    kind: str  # one of REFUSALS
    reason: str


class Unusable(RahfError):
    """A line cannot be used. `kind` is one of REFUSALS, the message describes it."""

    def __init__(self, kind: str, reason: str):
        super().__init__(reason)
        self.kind = kind


class Predicted(NamedTuple):
    """What a model predicts of one picture. What it does not predict is NaN or None."""

    scores: np.ndarray  # float32 [4] in order SCORES
    heatmaps: tuple[np.ndarray | None, ...]  # float32 [h,w] in [0,1] of each of HEATMAPS, any size
    word_labels: tuple[int, ...] | None = None  # of every word of the prompt, 1 aligned, 0 misaligned
    word_probabilities: tuple[float, ...] | None = None  # of "misaligned"


class PredictionLine(NamedTuple):
    """One line, checked, its maps not yet read."""

    number: int
    uid: str | None
    image: str | None
    prompt: str | None
    scores: np.ndarray  # float32 [4], NaN where there is none
    word_labels: tuple[int, ...] | None
    word_probabilities: tuple[float, ...] | None
    maps: tuple[str | None, ...]  # path of each of HEATMAPS

    def read(self) -> Predicted:
        """The predictions, with the maps decoded. Raises ImageError if a map has changed since it was checked."""
        maps = tuple(None if path is None else load_predicted_map(path) for path in self.maps)
        return Predicted(self.scores, maps, self.word_labels, self.word_probabilities)


class PredictionFile(NamedTuple):
    """The lines of a predictions file."""

    path: str
    name: str  # of the model: field `model`, else the file's name
    lines: list[PredictionLine]
    refused: list[RefusedLine]
    unread: dict[str, int]  # unknown fields and how often they occur

    def refusal_counts(self) -> dict[str, int]:
        """Number of refused lines by kind, without zeros."""
        counts = Counter(one.kind for one in self.refused)
        return {kind: counts[kind] for kind in REFUSALS if counts[kind]}


def load_predicted_map(path: str) -> np.ndarray:
    """A predicted map as float32 [h,w] in [0,1]. Raises ImageError: no grey picture, too large, damaged."""
    return images.load_map(read_file(path), what=path, faint=True).astype(np.float32) / 255


def read_predictions(path: str | os.PathLike) -> PredictionFile:
    """Reads and checks a predictions file. Every map is decoded once, so that a bad one is known before any work.

    Args:
      path: of the JSONL file. Maps lie in its folder or below; no name leads elsewhere.

    Raises:
      DataError: no such file, no line at all, or none that can be used.
    """
    path = os.fspath(path)
    folder = os.path.dirname(os.path.abspath(path))
    lines: list[PredictionLine] = []
    refused: list[RefusedLine] = []
    unread: Counter[str] = Counter()
    models: Counter[str] = Counter()
    try:
        check_not_lfs_pointer(path)
        with open_regular(path) as file:
            for number, raw in _lines(file):
                try:
                    tree = _parse(raw)
                    lines.append(_checked(number, tree, folder))
                except Unusable as error:
                    refused.append(RefusedLine(number, error.kind, names.one_line(error, 300)))
                    continue
                unread.update(name for name in tree if name not in FIELDS)
                if tree.get("model"):
                    models[names.one_line(tree["model"], 80)] += 1
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); expected a predictions file") from error
    if not lines:
        why = f"; the first of {len(refused)} refused: line {refused[0].line}: {refused[0].reason}" if refused else ""
        raise DataError(
            f"{path}: no line that can be used{why}. Expected one JSON object per picture, see docs/report.md"
        )
    name = models.most_common(1)[0][0] if models else pathlib.PurePath(path).stem
    return PredictionFile(path, name, lines, refused, dict(unread))


def is_predictions(path: str) -> bool:
    """Whether a path names a predictions file and no model."""
    return path.lower().endswith((".jsonl", ".ndjson"))


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Number, from 1, and bytes of every line that is not blank; None for one that is too long."""
    number = 0
    while raw := file.readline(_MAX_LINE + 1):
        number += 1
        if len(raw) > _MAX_LINE:
            while raw and not raw.endswith(b"\n"):
                raw = file.readline(_MAX_LINE)
            yield number, None
        elif raw.removeprefix(_BYTE_ORDER_MARK).strip():
            yield number, raw


def _parse(raw: bytes | None) -> dict[str, Any]:
    """A line as an object. JSON only: no NaN, no name twice, at most one megabyte."""
    if raw is None:
        raise Unusable("malformed", f"longer than {_MAX_LINE:,} bytes")
    try:
        text = raw.removeprefix(_BYTE_ORDER_MARK).decode()
        tree = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Unusable("malformed", f"not JSON: {error}") from error
    if not isinstance(tree, dict):
        raise Unusable("malformed", f"expected an object in braces, found {type(tree).__name__}")
    return tree


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        raise ValueError(f"field {twice[0]!r:.60} occurs twice")
    return tree


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON; leave out what is not predicted, or write null")


def _checked(number: int, tree: Mapping[str, Any], folder: str) -> PredictionLine:
    texts = [_text(tree, name) for name in ("uid", "image", "prompt")]
    if not any(texts):
        raise Unusable("malformed", "neither uid nor image nor prompt, so it is not known of what this is predicted")
    _text(tree, "model")
    labels, probabilities = _words(tree)
    maps = tuple(_map(tree.get(name), name, folder) for name in HEATMAPS)
    scores = _scores(tree.get("scores"))
    if labels is None and not any(maps) and np.isnan(scores).all():
        raise Unusable("malformed", "no prediction: neither scores nor words nor maps")
    return PredictionLine(number, *texts, scores, labels, probabilities, maps)


def _text(tree: Mapping[str, Any], name: str) -> str | None:
    value = tree.get(name)
    if isinstance(value, int) and not isinstance(value, bool) and name == "uid":
        value = str(value) if abs(value) < 1 << 200 else value
    if value is None or value == "":
        return None
    if not isinstance(value, str) or "\0" in value or any(0xD800 <= ord(c) <= 0xDFFF for c in value):
        raise Unusable("malformed", f"{name} is {value!r:.80}, expected text")
    return value


def _scores(value: Any) -> np.ndarray:
    scores = np.full(len(SCORES), np.nan, np.float32)
    if value is None:
        return scores
    if not isinstance(value, dict):
        raise Unusable("bad score", f"scores is {value!r:.80}, expected an object of {', '.join(SCORES)}")
    for name, score in value.items():
        if name not in SCORES:
            raise Unusable("bad score", f"no score is called {name!r:.40}.{names.suggest(str(name), SCORES)}")
        if score is None:
            continue
        number = json_text.finite(score)
        if number is None or not 0 <= number <= 1:
            raise Unusable("bad score", f"{name} is {score!r:.40}, expected a number in [0, 1], high = good")
        scores[SCORES.index(name)] = number
    return scores


def _words(tree: Mapping[str, Any]) -> tuple[tuple[int, ...] | None, tuple[float, ...] | None]:
    labels, probabilities = tree.get("word_labels"), tree.get("word_probabilities")
    if labels is not None:
        if not isinstance(labels, list) or any(type(one) is not int or one not in (0, 1) for one in labels):
            raise Unusable("bad words", f"word_labels is {labels!r:.80}, expected a list of 1 (aligned) and 0")
        labels = tuple(labels)
    if probabilities is not None:
        numbers = [json_text.finite(one) for one in probabilities] if isinstance(probabilities, list) else [None]
        if any(one is None or not 0 <= one <= 1 for one in numbers):
            raise Unusable(
                "bad words", f"word_probabilities is {probabilities!r:.80}, expected numbers in [0, 1], 1 = misaligned"
            )
        probabilities = tuple(numbers)
        if labels is None:
            labels = tuple(int(one <= 0.5) for one in probabilities)
    if labels is not None and probabilities is not None and len(labels) != len(probabilities):
        raise Unusable("bad words", f"{len(labels)} word_labels, but {len(probabilities)} word_probabilities")
    return labels, probabilities


def _map(value: Any, name: str, folder: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value or "\0" in value:
        raise Unusable("bad map", f"{name} is {value!r:.80}, expected the path of a grey PNG")
    if files.is_url(value):
        raise Unusable("bad map", f"{name} is {value!r:.80}, a URL; expected a path in the folder of the file")
    try:
        path = files.reachable(folder, value)
        load_predicted_map(path)
    except ImageError as error:
        raise Unusable("bad map", f"{name}: {error}") from error
    except (ValueError, OSError):
        # The message of `reachable` names an option that does not exist here, and the machine's folders.
        raise Unusable("bad map", f"{name}: {value!r:.80} leads out of the folder of the predictions file") from None
    return path
