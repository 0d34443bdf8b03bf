"""Prepared datasets on disk: ArrayRecord files with TFDS metadata, without TensorFlow."""

from data_pipelines.store.layout import INFO_FILE, METADATA_FILE, NAME, TOKENIZER_FILE, VERSION, splits, tokenizer_path
from data_pipelines.store.read import RecordSource, open_split
from data_pipelines.store.records import Record, missing_labels
from data_pipelines.store.write import load_writer, write_dataset
from rahf.core.errors import DatasetError

__all__ = [
    "INFO_FILE",
    "METADATA_FILE",
    "NAME",
    "TOKENIZER_FILE",
    "VERSION",
    "DatasetError",
    "Record",
    "RecordSource",
    "load_writer",
    "missing_labels",
    "open_split",
    "splits",
    "tokenizer_path",
    "write_dataset",
]
