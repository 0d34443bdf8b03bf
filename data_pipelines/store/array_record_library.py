"""The library that reads and writes ArrayRecord files.

It has no wheels for Windows and for Macs with Intel processors, so that it is imported where a dataset is opened: what
reads or uses a trained model does without.
"""

from __future__ import annotations

import importlib
import types

from rahf.core.errors import DatasetError


def load(module: str) -> types.ModuleType:
    """A module of the package, such as "array_record_module".

    Raises:
      DatasetError: the package is not installed.
    """
    try:
        return importlib.import_module(f"array_record.python.{module}")
    except ImportError as error:
        raise DatasetError(
            f"prepared datasets are ArrayRecord files, and the package array-record is not usable here ({error}): "
            "pip install array-record. It has no wheels for Windows and Macs with Intel processors; prepare, train and "
            "evaluate on Linux or on a Mac with an Apple processor. Exported critics need no dataset"
        ) from error
