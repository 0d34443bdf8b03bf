"""Writing of prepared datasets; the public face is `data_pipelines.store.write_dataset`."""

from __future__ import annotations

import hashlib
import io
import os
import pathlib
import shutil
from typing import Callable, Iterable, Iterator, Mapping

import numpy as np

from data_pipelines.store import layout
from data_pipelines.store.records import Record
from rahf.core.batch import SCORES
from rahf.core.errors import DatasetError

_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"
_SHARD_BYTES = 256 << 20  # a new shard begins when one has grown to this size


def write(
    out: str | os.PathLike,
    splits: Mapping[str, Iterable[Record]],
    description: str,
    tokenizer: bytes | None,
    extra: Mapping[str, bytes | str | Callable[[], bytes | str]],
) -> dict[str, int]:
    """See `data_pipelines.store.write_dataset`."""
    target = pathlib.Path(os.path.abspath(out))
    check_replaceable(target)
    building = target.with_name(f".{target.name}.writing")
    shutil.rmtree(building, ignore_errors=True)  # left by a run that was killed
    building.mkdir(parents=True)
    try:
        counts = _write_records(building, splits, description)
        if not any(counts.values()):
            raise DatasetError(f"{target}: nothing to write: {layout.listing(counts)}")
        if tokenizer:
            (building / layout.TOKENIZER_FILE).write_bytes(tokenizer)
        for name, content in extra.items():
            content = content() if callable(content) else content
            (building / name).write_bytes(content.encode() if isinstance(content, str) else content)
        _replace(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return counts


def check_replaceable(target: pathlib.Path) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise DatasetError(f"{target} is a file; name a directory for the dataset")
    if any(target.iterdir()) and not (target / layout.INFO_FILE).is_file():
        raise DatasetError(
            f"{target} exists and is not a prepared dataset ({layout.contents(target)}); "
            "it is left alone: name another directory"
        )


def _replace(new: pathlib.Path, target: pathlib.Path) -> None:
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _write_records(folder: pathlib.Path, splits: Mapping[str, Iterable[Record]], description: str) -> dict[str, int]:
    import tensorflow_datasets as tfds

    digests = tfds.core.MetadataDict()  # written to metadata.json: what the data are, whatever their sizes
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=layout.NAME,
            version=tfds.core.Version(layout.VERSION),
            data_dir=str(folder),
            module_name="data_pipelines.store",
        ),
        description=description,
        features=_features(),
        metadata=digests,
        disable_shuffling=True,
    )
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
    seen: set[str] = set()
    infos = []
    for split, records in splits.items():
        examples = _Serialized(records, split, info.features, seen)
        infos.append(_write_split(folder, split, examples))
        digests[split] = examples.digest.hexdigest()
    info.set_splits(tfds.core.SplitDict(infos))
    info.write_to_directory(folder)
    return {split.name: sum(split.shard_lengths) for split in infos}


def _write_split(folder: pathlib.Path, split: str, examples: "_Serialized"):
    """Writes the shards of one split; returns its `tfds.core.SplitInfo`."""
    import tensorflow_datasets as tfds

    template = tfds.core.ShardedFileTemplate(
        data_dir=folder,
        template=_TEMPLATE,
        dataset_name=layout.NAME,
        split=split,
        filetype_suffix="array_record",
    )
    writer = tfds.core.ExampleWriter(file_format=tfds.core.FileFormat.ARRAY_RECORD)
    lengths: list[int] = []
    while not examples.exhausted():
        before = examples.count
        path = template.sharded_filepath(shard_index=len(lengths), num_shards=None)
        writer.write(os.fspath(path), examples.shard())
        lengths.append(examples.count - before)
    return tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=examples.bytes, filename_template=template)


class _Serialized:
    """The records of a split as serialized examples, cut into shards; counts and digests what passes."""

    def __init__(self, records: Iterable[Record], split: str, features, seen: set[str]):
        import tensorflow_datasets as tfds

        self.records, self.split, self.features, self.seen = iter(records), split, features, seen
        self.serializer = tfds.core.ExampleSerializer(features.get_serialized_info())
        self.count = self.bytes = 0
        self.digest = hashlib.sha256()
        self.following = next(self.records, None)

    def exhausted(self) -> bool:
        return self.following is None

    def shard(self) -> Iterator[tuple[int, bytes]]:
        """Numbered examples, at least one, until `_SHARD_BYTES` are reached."""
        size = 0
        while self.following is not None and size < _SHARD_BYTES:
            _check(self.following, f"split {self.split!r}, record {self.count}", self.seen)
            encoded = self.features.encode_example(_to_example(self.following))
            # Deterministic: the order of a map's entries would otherwise be left to chance.
            example = self.serializer.get_tf_example(encoded).SerializeToString(deterministic=True)
            self.digest.update(example)
            size += len(example)
            yield self.count, example
            self.count += 1
            self.following = next(self.records, None)
        self.bytes += size


def _features():
    import tensorflow_datasets as tfds

    grey = {"shape": (None, None, 1), "encoding_format": "png"}
    return tfds.features.FeaturesDict(
        {
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


def _empty_map() -> bytes:
    """Stands for a missing map, so that TFDS' own decoding works: one black pixel."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, "PNG")
    return buffer.getvalue()


def _to_example(record: Record) -> dict:
    example = record._asdict()
    for name in ("implausibility", "misalignment"):
        example["has_" + name] = example[name] is not None
        example[name] = io.BytesIO(_empty_map() if example[name] is None else example[name])
    example["has_word_labels"] = record.word_labels is not None
    example["word_labels"] = list(record.word_labels or ())
    example["words"] = list(record.words)
    example["image"] = io.BytesIO(record.image)
    example["scores"] = np.asarray(record.scores, np.float32)
    return example


def _check(record: Record, where: str, seen: set[str]) -> None:
    where = f"{where} (uid {record.uid!r})"
    if record.uid in seen:
        raise DatasetError(f"{where}: this uid was written before; uids are unique in a dataset")
    seen.add(record.uid)
    if record.word_labels is not None and len(record.word_labels) != len(record.words):
        raise DatasetError(f"{where}: {len(record.words)} words but {len(record.word_labels)} word labels")
    if np.shape(record.scores) != (len(SCORES),):
        raise DatasetError(f"{where}: scores have shape {np.shape(record.scores)}, expected ({len(SCORES)},)")
    if not record.image:
        raise DatasetError(f"{where}: the image is empty")


def write_dataset(
    out: str | os.PathLike,
    splits: Mapping[str, Iterable[Record]],
    description: str,
    tokenizer: bytes | None = None,
    extra: Mapping[str, bytes | str | Callable[[], bytes | str]] | None = None,
) -> dict[str, int]:
    """Writes records as a TFDS dataset in ArrayRecord files. Order is kept; nothing is held in memory.

    The directory is built beside `out` under a temporary name and renamed when complete, so `out` is
    always either absent, the old dataset, or the whole new one.

    Args:
      out: directory to make. A dataset or an empty directory in its place is replaced.
      splits: records by split name, e.g. ``{"train": …, "dev": …}``; iterables are consumed once, in order.
      description: a sentence for ``dataset_info.json``.
      tokenizer: serialized SentencePiece model to put beside the data.
      extra: further files, content by file name; a function is called when every record has been written.

    Returns:
      Number of records per split.

    Raises:
      DatasetError: `out` is something else, no split has a record, or a record is malformed.
    """
    return write(out, splits, description, tokenizer, extra or {})


def load_writer() -> None:
    """Imports what `write_dataset` needs. To be called before a progress bar starts.

    While TFDS is loading it replaces Python's import by one that refuses relative imports, in all threads;
    that of a progress bar would fail.
    """
    import rich.markup  # noqa: F401
    import tensorflow_datasets as tfds

    _ = tfds.features.FeaturesDict, tfds.core.SequentialWriter  # loads what is loaded lazily
