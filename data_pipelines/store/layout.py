"""Files of a prepared dataset and their names: ArrayRecord shards described by TFDS metadata.

Imports neither JAX nor TFDS: data workers start fast.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping

from data_pipelines.store import array_record_library
from rahf.core import json_text
from rahf.core.errors import DatasetError
from rahf.core.files import read_regular

NAME, VERSION = "rich_feedback", "1.0.0"
FEATURES_FILE = "features.json"
INFO_FILE, METADATA_FILE, TOKENIZER_FILE = "dataset_info.json", "metadata.json", "tokenizer.model"


def splits(path: str | os.PathLike) -> dict[str, int]:
    """Number of records of each split of a prepared dataset. Raises DatasetError as `open_split`."""
    return {name: sum(count for _, count in files) for name, files in split_infos(pathlib.Path(path)).items()}


def tokenizer_path(path: str | os.PathLike) -> pathlib.Path:
    """The vocabulary beside the data. Raises DatasetError if there is none."""
    split_infos(pathlib.Path(path))
    file = pathlib.Path(path) / TOKENIZER_FILE
    if not file.is_file():
        raise DatasetError(f"{path} has no {TOKENIZER_FILE}; prepare the data again, or name a vocabulary file")
    return file


def has_field(path: str | os.PathLike, name: str) -> bool:
    """Whether a prepared dataset stores a field; False if there is no dataset."""
    try:
        tree = json_text.parse(read_regular(pathlib.Path(path) / FEATURES_FILE))
        return name in tree["featuresDict"]["features"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def split_infos(folder: pathlib.Path) -> dict[str, list[tuple[str, int]]]:
    """Files of each split with their numbers of records, from ``dataset_info.json``."""
    file = folder / INFO_FILE
    remedy = "make one with `rahf prepare synthetic|richhf18k|rapidata|regions|feedback|saliency|motion … --out DIR`"
    if not folder.is_dir():
        raise DatasetError(f"{folder} is {'a file' if folder.exists() else 'not there'}; "
                           f"expected a prepared dataset directory: {remedy}")  # fmt: skip
    if not file.is_file():
        raise DatasetError(f"{folder} is not a prepared dataset: no {INFO_FILE}, {contents(folder)}; {remedy}")
    try:
        info = json_text.parse_object(read_regular(file))
        if info["fileFormat"] != "array_record":
            raise DatasetError(f"{file}: the records are {info['fileFormat']!r}, expected 'array_record'; {remedy}")
        return {split["name"]: _files(folder, info, split) for split in info["splits"]}
    except DatasetError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise DatasetError(f"{file} is not the description of a TFDS dataset ({error!r}); {remedy}") from error


def _files(folder: pathlib.Path, info: dict, split: dict) -> list[tuple[str, int]]:
    """Path and number of records of each shard of a split."""
    lengths = [int(length) for length in split.get("shardLengths", [])]
    template = split.get("filepathTemplate", "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}")
    files = []
    for number, length in enumerate(lengths):
        name = template.format(
            DATASET=info["name"],
            SPLIT=split["name"],
            FILEFORMAT="array_record",
            SHARD_INDEX=f"{number:05d}",
            NUM_SHARDS=f"{len(lengths):05d}",
            SHARD_X_OF_Y=f"{number:05d}-of-{len(lengths):05d}",
        )
        if pathlib.PurePath(name).name != name or not 0 <= length < 1 << 63:
            raise ValueError(f"shard {name!r:.80} of {length} records")
        files.append((str(folder / name), length))
    return files


def check_file(file: str, count: int) -> None:
    """Raises DatasetError unless a shard is there and holds `count` records."""
    remedy = "copy the dataset again or prepare it again"
    if not os.path.isfile(file):
        raise DatasetError(f"{file} is missing, {INFO_FILE} says it holds {count} records; {remedy}")
    array_record_module = array_record_library.load("array_record_module")
    try:
        reader = array_record_module.ArrayRecordReader(file)
        stored = reader.num_records()
        reader.close()
    except (RuntimeError, ValueError, OSError) as error:
        raise DatasetError(f"{file} is cut off or damaged ({error}); {remedy}") from error
    if stored != count:
        raise DatasetError(f"{file} holds {stored} records, {INFO_FILE} says {count}; {remedy}")


def check_replaceable(target: pathlib.Path) -> None:
    """Raises DatasetError unless `target` is absent, an empty directory or a prepared dataset."""
    if not target.exists():
        return
    if not target.is_dir():
        raise DatasetError(f"{target} is a file; name a directory for the dataset")
    if any(target.iterdir()) and not (target / INFO_FILE).is_file():
        raise DatasetError(
            f"{target} exists and is not a prepared dataset ({contents(target)}); "
            "it is left alone: name another directory"
        )


def contents(folder: pathlib.Path) -> str:
    """The first names in a directory, for messages."""
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    if not names:
        return "the directory is empty"
    return "it holds " + ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def listing(counts: Mapping[str, int]) -> str:
    """Splits and their numbers of records, for messages."""
    return ", ".join(f"{name} ({count} records)" for name, count in counts.items()) or "no split"
