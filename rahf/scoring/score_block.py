"""One block → a table of scores. Pictures are alive only while they wait for the network."""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from rahf import images
from rahf.core.batch import SCORES
from rahf.scoring import files
from rahf.scoring.blocks import Block
from rahf.scoring.records import MAX_IMAGE, Reading, Record, records
from rahf.text.prompts import PromptWarning


class Scored(NamedTuple):
    """What became of one record."""

    record: Record
    scores: np.ndarray | None  # float32 [4]
    prompt_cut: bool  # the network does not read the whole prompt
    error: str | None


def score_block(critic: Any, block: Block, reading: Reading, batch_size: int) -> Iterator[Scored]:
    """Scores the records of a block, in order.

    At most two batches of pictures are alive at any time: one with the network, the next being decoded, each picture
    at the network's size as soon as it is decoded. Which records share a batch follows from the block alone, so a
    repeated block gives the same bits.

    Args:
      critic: `rahf.load(...)`, or anything that is called and answers like it and has its `image_size`.
      block, reading: what to read.
      batch_size: pictures per step of the network.

    Raises:
      OSError: the source cannot be reached.
    """
    for batch in _decoded(records(block, reading), image_size(critic), batch_size):
        yield from _scored(critic, batch, batch_size)


def _scored(critic: Any, batch: list, batch_size: int) -> list[Scored]:
    """Scores one batch and empties it: its pictures must be gone before the next ones are decoded."""
    good = [number for number, (_, square, _) in enumerate(batch) if square is not None]
    scores: dict[int, np.ndarray] = {}
    cut: set[str] = set()
    if good:
        found, cut = _ask(critic, [batch[n][1] for n in good], [batch[n][0].prompt for n in good], batch_size)
        scores = dict(zip(good, found))
    rest = [(record, error) for record, _, error in batch]
    batch.clear()
    return [Scored(record, scores.get(n), record.prompt in cut, error) for n, (record, error) in enumerate(rest)]


def image_size(critic: Any) -> int:
    """Side in pixels of the square that a critic sees."""
    side = getattr(critic, "image_size", None)
    return int(side if side is not None else critic.config.model.image_size)


def _ask(critic: Any, squares: list, prompts: list[str], batch_size: int) -> tuple[np.ndarray, set[str]]:
    """Scores, and the prompts that the network does not read wholly."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PromptWarning)
        found = np.asarray(critic(squares, prompts, batch_size=batch_size).scores)
    cut: set[str] = set()
    if any(issubclass(one.category, PromptWarning) for one in caught):
        cut = {prompt for prompt in set(prompts) if _is_cut(critic, prompt)}
    return found, cut


def _is_cut(critic: Any, prompt: str) -> bool:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PromptWarning)
        critic.tokens(prompt)
    return any(issubclass(one.category, PromptWarning) for one in caught)


def _decoded(
    source: Iterator[Record], side: int, size: int
) -> Iterator[list[tuple[Record, np.ndarray | None, str | None]]]:
    """Batches of records with their squares, decoded in threads one batch ahead of the caller."""
    with concurrent.futures.ThreadPoolExecutor(min(size, os.cpu_count() or 1, 16)) as threads:

        def begin() -> list[tuple[Record, concurrent.futures.Future]]:
            some = itertools.islice(source, size)
            # Of an encoded picture only the thread keeps hold.
            return [(one._replace(image=None), threads.submit(decode, one, side)) for one in some]

        try:
            ahead = begin()
            while ahead:
                now, ahead = ahead, begin()
                batch = [(record, *future.result()) for record, future in now]
                del now
                yield batch
        finally:
            threads.shutdown(cancel_futures=True)


def decode(record: Record, side: int) -> tuple[np.ndarray | None, str | None]:
    """The square uint8 [side,side,3] of a record, or why there is none.

    Raises:
      OSError: a picture by URL cannot be fetched now.
    """
    if record.error:
        return None, record.error
    data = record.image
    if isinstance(data, str):
        try:
            data = files.read(data, MAX_IMAGE)
        except ValueError as error:
            return None, f"{record.key}: {error}"
        except OSError as error:
            # Files here are there or not; of a network the next try may be better.
            if files.is_url(record.image) and not isinstance(error, FileNotFoundError):
                raise
            return None, f"{record.key}: {error.strerror or 'cannot be read'}"
    try:
        return images.decode_resized(data, side, what=record.key), None
    except images.ImageError as error:
        return None, str(error)


def table(scored: Sequence[Scored], source: str) -> Any:
    """What is written of a block: one row per record, also of those that could not be scored.

    Columns: source, row, key, prompt, group, the four scores (float32, null if not scored), prompt_cut, error (null
    if scored).
    """
    import pyarrow as pa

    columns = {
        "source": pa.array([source] * len(scored), pa.string()),
        "row": pa.array([one.record.row for one in scored], pa.int64()),
        "key": pa.array([_text(one.record.key) for one in scored], pa.string()),
        "prompt": pa.array([one.record.prompt for one in scored], pa.string()),
        "group": pa.array([_text(one.record.group) for one in scored], pa.string()),
    }
    for at, name in enumerate(SCORES):
        columns[name] = pa.array([None if s.scores is None else float(s.scores[at]) for s in scored], pa.float32())
    columns["prompt_cut"] = pa.array([one.prompt_cut for one in scored], pa.bool_())
    columns["error"] = pa.array([_text(one.error) for one in scored], pa.string())
    return pa.table(columns)


def _text(text: str | None) -> str | None:
    """Text that can be stored: names of files may hold bytes that are not UTF-8."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()
