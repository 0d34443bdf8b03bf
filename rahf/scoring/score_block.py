"""One block → a table of scores. Knows no folder and no job; a picture is in memory only until it is scored."""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from rahf import images
from rahf.core.batch import SCORES
from rahf.core.errors import NotFinite
from rahf.scoring import files
from rahf.scoring.blocks import MAX_IMAGE, Block, one_line
from rahf.scoring.records import ReadOptions, ScoringRecord, records
from rahf.text.prompts import collected_notes

_ATTEMPTS = 3  # to fetch a picture
_PAUSE = 0.25  # seconds; doubles with each attempt


class ScoredRecord(NamedTuple):
    """A record with its scores, or with the reason why it has none."""

    record: ScoringRecord
    scores: np.ndarray | None  # float32 [4]
    prompt_cut: bool  # the network does not read the whole prompt
    error: str | None


def score_block(critic: Any, block: Block, options: ReadOptions, batch_size: int) -> Iterator[ScoredRecord]:
    """Scores the records of a block, in order.

    At most two batches of pictures are in memory at any time: the network scores one while threads decode the next.
    Each picture is resized to the network's size as soon as it is decoded. Which records share a batch follows from
    the block alone, so a repeated block gives the same bits.

    Args:
      critic: `rahf.load(...)`, or any object with the same call and `image_size`, which tells `rahf.text.prompts.warn`
        which prompts are cut.
      block, options: what to read, and how.
      batch_size: pictures per step of the network.

    Raises:
      OSError: the source cannot be reached.
    """
    for batch in _decoded(records(block, options), image_size(critic), batch_size):
        yield from _scored(critic, batch, batch_size)


def _scored(critic: Any, batch: list, batch_size: int) -> list[ScoredRecord]:
    """Scores one batch and empties it: its pictures must be freed before the next ones are decoded."""
    decoded = [number for number, (_, square, _) in enumerate(batch) if square is not None]
    scores: dict[int, np.ndarray | str] = {}
    cut: set[str] = set()
    if decoded:
        squares, prompts = [batch[n][1] for n in decoded], [batch[n][0].prompt for n in decoded]
        values, cut = _ask(critic, squares, prompts, batch_size)
        scores = dict(zip(decoded, values))
        del squares
    records_and_errors = [(record, error) for record, _, error in batch]
    batch.clear()
    return [
        _scored_record(record, scores.get(number), record.prompt in cut, error)
        for number, (record, error) in enumerate(records_and_errors)
    ]


def _scored_record(record: ScoringRecord, scores: np.ndarray | str | None, cut: bool, error: str | None):
    """`scores` may be the reason why there are none."""
    if isinstance(scores, str):
        return ScoredRecord(record, None, False, f"{record.key}: {scores}")
    return ScoredRecord(record, scores, cut, error)


def image_size(critic: Any) -> int:
    """Side in pixels of the square that a critic sees."""
    side = getattr(critic, "image_size", None)
    return int(side if side is not None else critic.config.model.image_size)


def _ask(critic: Any, squares: list, prompts: list[str], batch_size: int) -> tuple[list[np.ndarray | str], set[str]]:
    """The scores, and the prompts of which the network does not read the end."""
    with collected_notes() as notes:
        scores = _predict(critic, squares, prompts, batch_size)
    return scores, set(notes)


def _predict(critic: Any, squares: list, prompts: list[str], batch_size: int) -> list[np.ndarray | str]:
    """The scores of each picture; a text where they are not finite. One such picture does not cost the others."""
    try:
        return list(np.asarray(critic(squares, prompts, batch_size=batch_size).scores))
    except NotFinite:
        if len(squares) == 1:
            return ["its scores are not finite (NaN or infinite)"]
        pairs = zip(squares, prompts)
        return [one for pair in pairs for one in _predict(critic, [pair[0]], [pair[1]], batch_size)]


def _decoded(
    source: Iterator[ScoringRecord], side: int, size: int
) -> Iterator[list[tuple[ScoringRecord, np.ndarray | None, str | None]]]:
    """Batches of records with their squares, decoded in threads one batch ahead of the caller."""
    with concurrent.futures.ThreadPoolExecutor(min(size, os.cpu_count() or 1, 16)) as threads:

        def submit() -> list[tuple[ScoringRecord, concurrent.futures.Future]]:
            batch = itertools.islice(source, size)
            # Only the thread keeps a reference to the encoded picture.
            return [(record._replace(image=None), threads.submit(decode, record, side)) for record in batch]

        try:
            following = submit()
            while following:
                current, following = following, submit()
                batch = [(record, *future.result()) for record, future in current]
                del current
                yield batch
        finally:
            threads.shutdown(cancel_futures=True)


def decode(record: ScoringRecord, side: int) -> tuple[np.ndarray | None, str | None]:
    """The picture of a record as uint8 [side,side,3], or the reason why there is none."""
    if record.error:
        return None, record.error
    data = record.image
    if isinstance(data, str):
        try:
            data = _fetched(data)
        except ValueError as error:
            return None, f"{record.key}: {error}"
        except OSError as error:
            return None, f"{record.key}: {error.strerror or one_line(error)}"
    try:
        return images.decode_resized(data, side, what=record.key), None
    except images.ImageError as error:
        return None, str(error)


def _fetched(path: str) -> bytes:
    """The content of a picture's file. By URL in several attempts: a network may answer at the next one.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is too large, or its URL cannot be fetched.
    """
    if not files.is_url(path):
        return files.read(path, MAX_IMAGE)
    for attempt in itertools.count(1):
        try:
            return files.read(path, MAX_IMAGE)
        except (FileNotFoundError, ValueError):
            raise
        except Exception as error:  # each file system of fsspec raises its own
            if attempt == _ATTEMPTS:
                raise ValueError(f"cannot be fetched in {_ATTEMPTS} attempts ({one_line(error)})") from error
        time.sleep(_PAUSE * 2**attempt)


def table(scored: Sequence[ScoredRecord], source: str) -> pa.Table:
    """The table that is written for a block: one row per record, scored or not.

    Columns: source, row, key, prompt, group, own_group (whether the group is the record's own and not its prompt), the
    four scores (float32, null if not scored or not predicted), prompt_cut, error (null if scored).
    """
    columns = {
        "source": pa.array([source] * len(scored), pa.string()),
        "row": pa.array([row.record.row for row in scored], pa.int64()),
        "key": pa.array([_text(row.record.key) for row in scored], pa.string()),
        "prompt": pa.array([row.record.prompt for row in scored], pa.string()),
        "group": pa.array([_text(row.record.group) for row in scored], pa.string()),
        "own_group": pa.array([row.record.own_group for row in scored], pa.bool_()),
    }
    for column, name in enumerate(SCORES):
        values = [_value(row.scores, column) for row in scored]
        columns[name] = pa.array(values, pa.float32())
    columns["prompt_cut"] = pa.array([row.prompt_cut for row in scored], pa.bool_())
    columns["error"] = pa.array([_text(row.error) for row in scored], pa.string())
    return pa.table(columns)


def _value(scores: np.ndarray | None, column: int) -> float | None:
    """A score; None where the record has none or the model does not predict it."""
    return None if scores is None or np.isnan(scores[column]) else float(scores[column])


def _text(text: str | None) -> str | None:
    """Text that can be stored as UTF-8: names of files may contain other bytes."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()
