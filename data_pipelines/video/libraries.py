"""PyAV and OpenCV, which only real videos need; extra "motion"."""

from __future__ import annotations

import importlib
import types
from typing import Literal

from rahf.core.errors import DatasetError

_PACKAGES = {"av": ("PyAV decodes and writes videos", "av"), "cv2": ("OpenCV computes flow", "opencv-python-headless")}


def load(module: Literal["av", "cv2"]) -> types.ModuleType:
    """The module. Raises DatasetError if its package is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        purpose, package = _PACKAGES[module]
        raise DatasetError(
            f"{purpose} here, and it is not usable ({error}): pip install rahf[motion], or {package}"
        ) from error
