"""A stored record → the arrays of one example, augmented or not; examples → a batch."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from data_pipelines.loading import transforms
from data_pipelines.loading.damage import DamageLog
from data_pipelines.store.records import Record
from rahf import images
from rahf.config import DataConfig
from rahf.core.batch import HEATMAPS, Batch, spec
from rahf.core.errors import DataError
from rahf.text import Tokenizer
from rahf.text.words import word_ends

#: Function of a record, the side of the square, the part of the image, and what is called with the error of a damaged
#: JPEG (None: it is raised) → uint8 [side,side,3].
DecodeSquare = Callable[[Record, int, images.Box, images.OnDamage | None], np.ndarray]


@runtime_checkable
class RecordSequence(Protocol):
    """Random access to the records of a split; must be picklable for worker processes."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Record: ...


def decode_square(
    record: Record, size: int, box: images.Box = images.FULL, on_damage: images.OnDamage | None = None
) -> np.ndarray:
    """The square of `rahf.images.decode_resized`: the stored one if there is one of this size, else of the image.

    A crop is always cut from the image: from a square it would have other pixels.
    """
    if box == images.FULL and record.square is not None and len(record.square) == size:
        return record.square
    return images.decode_resized(record.image, size, box, on_damage=on_damage)


def example(
    record: Record,
    index: int,
    config: DataConfig,
    image_size: int,
    tokenizer: Tokenizer,
    rng: np.random.Generator | None = None,
    decode_square: DecodeSquare = decode_square,
    pixels: bool = True,
    on_damage: images.OnDamage | None = None,
) -> Batch:
    """Decodes, augments and tokenizes one record.

    Args:
      record: as stored; any label may be missing.
      index: its position in the split.
      config: sequence lengths and augmentations.
      image_size: side of image and heatmaps in pixels.
      tokenizer: the vocabulary.
      rng: randomness of the augmentations; None, or `config.augment` None: no augmentation.
      decode_square: how the record's image becomes a square.
      pixels: False: the image is not decoded, and is one black pixel in the example.
      on_damage: as in `rahf.images.decode_resized`.

    Returns:
      The fields of a `Batch` without the batch axis. A missing label is 0, and its mask is False. Words beyond
      `max_words` are left out. Words beyond `max_target_tokens` have `word_end` -1 but stay in `word_mask`: metrics
      count them.

    Raises:
      rahf.images.ImageError: image or heatmap cannot be decoded.
      ValueError: numbers of words and word labels differ.
    """
    augment = config.augment if rng is not None else None
    maps = [
        None if data is None else images.load_grey(data, what=f"{name} map")
        for name, data in zip(HEATMAPS, (record.implausibility, record.misalignment))
    ]
    box = images.FULL
    if augment is not None:
        box = transforms.random_box(augment, rng, [values for values in maps if values is not None])
    image = decode_square(record, image_size, box, on_damage) if pixels else np.zeros((1, 1, 3), np.uint8)
    if augment is not None and pixels:
        image = transforms.random_colours(image, augment, rng)
    heatmaps = np.zeros((image_size, image_size, len(HEATMAPS)), np.uint8)
    for channel, values in enumerate(maps):
        if values is not None:
            heatmaps[..., channel] = images.resize_grey(values, image_size, box)
    if augment is not None and transforms.random_flip(augment, rng, record.prompt):
        image, heatmaps = image[:, ::-1], heatmaps[:, ::-1]
    scores = np.asarray(record.scores, np.float32)
    present = ~np.isnan(scores)
    return Batch(
        image=image,
        **_text(record, config, tokenizer),
        heatmaps=heatmaps,
        heatmap_mask=np.array([values is not None for values in maps]),
        scores=np.where(present, scores, np.float32(0)),
        score_mask=present,
        example_mask=np.array(True),
        index=np.array(index, np.int64),
    )


def _text(record: Record, config: DataConfig, tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """The text fields of a `Batch`, by name."""
    labelled = record.word_labels is not None
    text = tokenizer.encode_prompt(record.prompt, config.max_prompt_tokens)
    plain, ends = tokenizer.encode_target(record.words, None, config.max_target_tokens)
    target, target_ends = plain, ends
    if labelled:
        target, target_ends = tokenizer.encode_target(record.words, record.word_labels, config.max_target_tokens)
    soft = labelled and config.soft_words and record.word_shares is not None
    others = _other_labels(target.ids, target_ends, record, tokenizer.suffix_ids if soft else ())
    count = min(len(record.words), config.max_words)
    word_labels = np.zeros(config.max_words, np.int32)
    if labelled:
        word_labels[:count] = record.word_labels[:count]
    return {
        "text_ids": text.ids,
        "text_mask": text.mask,
        "target_ids": target.ids,
        "target_mask": target.mask & labelled,
        "prompt_ids": plain.ids,
        "word_end": word_ends(ends, config.max_words),
        "word_labels": word_labels,
        "word_mask": (np.arange(config.max_words) < count) & labelled,
        "other_ids": others[0],
        "other_shares": others[1],
    }


def _other_labels(
    target: np.ndarray, ends: Sequence[int], record: Record, suffix: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The fields `other_ids` and `other_shares`; an empty suffix: labels are not soft.

    Behind a word the decoder either begins the suffix or goes on. The majority's choice is in the target.
    """
    ids, shares = np.zeros(len(target), np.int32), np.zeros(len(target), np.float32)
    if not suffix:
        return ids, shares
    for end, label, share in zip(ends, record.word_labels, record.word_shares, strict=True):
        if end < 0:  # the word did not fit
            continue
        ids[end + 1] = suffix[0] if label else target[end + 1 + len(suffix)]
        shares[end + 1] = 1 - share if label else share
    return ids, shares


def filling(config: DataConfig, image_size: int) -> Batch:
    """An example that fills up a batch: every mask False, `index` and `word_end` -1, the rest 0."""
    lengths = (config.max_prompt_tokens, config.max_target_tokens, config.max_words)
    empty = Batch(**{name: np.zeros(s[1:], d) for name, (s, d) in spec(1, image_size, *lengths).items()})
    return empty._replace(word_end=empty.word_end - 1, index=empty.index - 1)


def stack(examples: Sequence[Batch]) -> Batch:
    """Examples without a batch axis → a batch."""
    return Batch(*(np.stack(values) for values in zip(*examples)))


class Numbered:
    """A source of pairs: position and record."""

    def __init__(self, source: RecordSequence):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[int, Record]:
        return int(index), self.source[int(index)]


class Joined:
    """Several sources as one: position counted through all of them → record."""

    def __init__(self, sources: Sequence[RecordSequence]):
        self.sources = sources
        self.starts = [sum(map(len, sources[:number])) for number in range(len(sources))]

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def __getitem__(self, index: int) -> Record:
        number = bisect.bisect_right(self.starts, index) - 1
        return self.sources[number][index - self.starts[number]]


class Subset:
    """Some records of a source: position among them → record."""

    def __init__(self, source: RecordSequence, positions: Sequence[int]):
        self.source, self.positions = source, np.asarray(positions, np.int64)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Record:
        return self.source[int(self.positions[index])]


class ExampleMaker:
    """Function (position in the stream, (index, record)) → example. With a seed it augments.

    With a `damage` log a JPEG that is damaged in the middle is taken as it is repaired, and noted: `rahf prepare`
    refuses such pictures, but version 0 did not, and one of them must not end a run.
    """

    damage: DamageLog | None = None

    def __init__(
        self,
        config: DataConfig,
        image_size: int,
        tokenizer: Tokenizer,
        where: str,
        seed: int | None = None,
        records: int = 0,
        decode_square: DecodeSquare = decode_square,
        pixels: bool = True,
    ):
        self.config, self.image_size, self.tokenizer, self.pixels = config, image_size, tokenizer, pixels
        self.where, self.seed, self.records, self.decode_square = where, seed, records, decode_square

    def __call__(self, position: int, numbered: tuple[int, Record]) -> Batch:
        index, record = numbered
        rng = None
        if self.seed is not None:
            rng = np.random.default_rng((self.seed % 2**32, position // self.records, index))
        try:
            return example(
                record, index, self.config, self.image_size, self.tokenizer, rng, self.decode_square, self.pixels,
                None if self.damage is None else lambda _: self.damage.add(index),
            )  # fmt: skip
        except ValueError as error:
            raise DataError(
                f"{self.where}, record {index} (uid {record.uid!r}): {error}; prepare the data again"
            ) from error
