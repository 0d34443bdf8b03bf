"""Prepared datasets on disk: ArrayRecord files with TFDS metadata, without TensorFlow.

`write_dataset` makes a directory that `tfds.builder_from_directory` understands: ``features.json``,
``dataset_info.json``, ArrayRecord shards, and beside them ``tokenizer.model``. `open_split` reads a split with random
access and leaves image and maps encoded. Reading imports neither JAX nor TFDS: data workers start fast.
"""

from data_pipelines.store.kinds import FEEDBACK, Kind
from data_pipelines.store.layout import (
    INFO_FILE,
    METADATA_FILE,
    NAME,
    TOKENIZER_FILE,
    VERSION,
    check_replaceable,
    has_field,
    splits,
    tokenizer_path,
)
from data_pipelines.store.read import RecordSource, open_split, prompts
from data_pipelines.store.records import Record, missing_labels
from data_pipelines.store.write import load_writer, write_dataset
from rahf.core.errors import DatasetError

__all__ = [
    "FEEDBACK",
    "INFO_FILE",
    "METADATA_FILE",
    "NAME",
    "TOKENIZER_FILE",
    "VERSION",
    "DatasetError",
    "Kind",
    "Record",
    "RecordSource",
    "check_replaceable",
    "has_field",
    "load_writer",
    "missing_labels",
    "open_split",
    "prompts",
    "splits",
    "tokenizer_path",
    "write_dataset",
]
