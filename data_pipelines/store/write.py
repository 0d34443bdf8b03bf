"""Writes prepared datasets. Equal input gives equal bytes.

TFDS is imported inside functions: it takes seconds, and `data_pipelines.store` is also what data workers read with.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from data_pipelines.store import array_record_library, layout
from data_pipelines.store.kinds import FEEDBACK, Kind
from rahf.core.errors import DatasetError
from rahf.core.files import replacing_folder

_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"
_SHARD_BYTES = 256 << 20  # a new shard begins when one has grown to this size


def write_dataset(
    out: str | os.PathLike,
    splits: Mapping[str, Iterable[Any]],
    description: str,
    tokenizer: bytes | None = None,
    extra: Mapping[str, bytes | str | Callable[[], bytes | str]] | None = None,
    optional: Collection[str] = (),
    kind: Kind = FEEDBACK,
) -> dict[str, int]:
    """Writes records as a TFDS dataset in ArrayRecord files. Order is kept; nothing is held in memory.

    The directory is built beside `out` under a temporary name and renamed when complete, so `out` is
    always either absent, the old dataset, or the complete new one.

    Args:
      out: directory to make. A dataset or an empty directory in its place is replaced.
      splits: records by split name, e.g. ``{"train": …, "dev": …}``; iterables are consumed once, in order.
      description: a sentence for ``dataset_info.json``.
      tokenizer: serialized SentencePiece model to put beside the data.
      extra: further files, content by file name; a function is called when every record has been written.
      optional: fields of a record that the dataset is to have beside the usual ones, of `schema.OPTIONAL`.
      kind: of the records.

    Returns:
      Number of records per split.

    Raises:
      DatasetError: `out` is something else, no split has a record, or a record is malformed.
      OSError: a file cannot be written.
    """
    target = pathlib.Path(os.path.abspath(out))
    layout.check_replaceable(target)
    with replacing_folder(target) as folder:
        counts = _write_records(folder, splits, description, optional, kind)
        if not any(counts.values()):
            raise DatasetError(f"{target}: nothing to write: {layout.listing(counts)}")
        if tokenizer:
            (folder / layout.TOKENIZER_FILE).write_bytes(tokenizer)
        for name, content in (extra or {}).items():
            content = content() if callable(content) else content
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return counts


def load_writer() -> None:
    """Imports what `write_dataset` needs. To be called before a progress bar starts.

    While TFDS is loading it replaces Python's import by one that refuses relative imports, in all threads. The thread
    of a progress bar, which imports `rich.markup` when it first draws, would fail.
    """
    import rich.markup  # noqa: F401
    import tensorflow_datasets as tfds

    _ = tfds.features.FeaturesDict, tfds.core.SequentialWriter  # loads what is loaded lazily


def _write_records(
    folder: pathlib.Path,
    splits: Mapping[str, Iterable[Any]],
    description: str,
    optional: Collection[str],
    kind: Kind,
) -> dict[str, int]:
    """Writes shards and metadata; returns the number of records per split."""
    import tensorflow_datasets as tfds

    digests = tfds.core.MetadataDict()  # written to metadata.json: of the records' content, whatever their number
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=kind.name,
            version=tfds.core.Version(kind.version),
            data_dir=str(folder),
            module_name="data_pipelines.store",
        ),
        description=description,
        features=kind.features(optional),
        metadata=digests,
        disable_shuffling=True,
    )
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
    uids: set[str] = set()
    infos = []
    for split, records in splits.items():
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            examples = _SerializedSplit(records, split, info.features, uids, kind, thread)
            infos.append(_write_split(folder, split, examples, kind.name, "square" not in optional))
        digests[split] = examples.digest.hexdigest()
    info.set_splits(tfds.core.SplitDict(infos))
    info.write_to_directory(folder)
    return {split.name: sum(split.shard_lengths) for split in infos}


def _write_split(folder: pathlib.Path, split: str, examples: _SerializedSplit, name: str, compressed: bool) -> Any:
    """Writes the shards of one split; returns its `tfds.core.SplitInfo`.

    `compressed`: whether ArrayRecord compresses the records. Squares are plain pixels: they would be a quarter smaller,
    and a loader would decompress them in every epoch, for crops as well, which do not use them.
    """
    import tensorflow_datasets as tfds

    template = tfds.core.ShardedFileTemplate(
        data_dir=folder,
        template=_TEMPLATE,
        dataset_name=name,
        split=split,
        filetype_suffix="array_record",
    )
    writer_class = array_record_library.load("array_record_module").ArrayRecordWriter
    options = "group_size:1" + ("" if compressed else ",uncompressed")  # one record a chunk: read in any order
    lengths: list[int] = []
    while not examples.exhausted():
        before = examples.count
        path = template.sharded_filepath(shard_index=len(lengths), num_shards=None)
        writer = writer_class(os.fspath(path), options)
        try:
            for example in examples.shard():
                writer.write(example)
        finally:
            writer.close()
        lengths.append(examples.count - before)
    return tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=examples.bytes, filename_template=template)


class _SerializedSplit:
    """The records of a split as serialized examples, cut into shards; counts them, and digests their bytes.

    One thread digests in order while the next record is serialized; the digest is complete when the thread has ended.
    """

    def __init__(
        self,
        records: Iterable[Any],
        split: str,
        features: Any,
        uids: set[str],
        kind: Kind,
        thread: concurrent.futures.Executor,
    ):
        import tensorflow_datasets as tfds

        self.records, self.split, self.features, self.uids = iter(records), split, features, uids
        self.kind = kind
        self.fields = set(features.keys())
        self.serializer = tfds.core.ExampleSerializer(features.get_serialized_info())
        self.count = self.bytes = 0
        self.digest, self.thread, self.digesting = hashlib.sha256(), thread, None
        self.following = next(self.records, None)

    def exhausted(self) -> bool:
        return self.following is None

    def shard(self) -> Iterator[bytes]:
        """Examples, at least one, until `_SHARD_BYTES` are reached."""
        size = 0
        while self.following is not None and size < _SHARD_BYTES:
            _check(self.following, f"split {self.split!r}, record {self.count}", self.uids, self.kind)
            fields = self.kind.to_example(self.following)
            encoded = self.features.encode_example({name: fields[name] for name in fields if name in self.fields})
            # Deterministic: the order of a map's entries would otherwise be left to chance.
            example = self.serializer.get_tf_example(encoded).SerializeToString(deterministic=True)
            if self.digesting is not None:
                self.digesting.result()  # no more than one example waits in memory
            self.digesting = self.thread.submit(self.digest.update, example)
            size += len(example)
            yield example
            self.count += 1
            self.following = next(self.records, None)
        self.bytes += size


def _check(record: Any, where: str, uids: set[str], kind: Kind) -> None:
    """Raises DatasetError if a record is malformed, or its uid is among `uids`; adds it there."""
    where = f"{where} (uid {record.uid!r})"
    if record.uid in uids:
        raise DatasetError(f"{where}: this uid was written before; uids are unique in a dataset")
    uids.add(record.uid)
    kind.check(record, where)
