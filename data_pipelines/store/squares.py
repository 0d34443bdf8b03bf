"""Squares that are stored beside their images: of which size and by which definition.

A square is what `rahf.images.decode_resized` makes of an image. Computed once, it does not have to be computed in every
epoch. It is stored without loss, so that a batch is the same with it and without. The definition of the square stands
beside the data; squares of another definition are refused.
"""

from __future__ import annotations

import hashlib
import json
import pathlib

from data_pipelines.store.layout import has_field
from rahf.core import json_text
from rahf.core.errors import DatasetError
from rahf.core.files import read_regular
from rahf.images.decode import SQUARE

#: Beside a dataset with squares: their size, and their definition.
FILE = "squares.json"


def definition() -> str:
    """Hash of the definition of the square, 12 hexadecimal digits."""
    return hashlib.sha256(SQUARE.encode()).hexdigest()[:12]


def description(side: int) -> str:
    """The content of `FILE`. `side`: of the squares, in pixels."""
    return json.dumps({"side": side, "definition": definition(), "square": SQUARE}, indent=1) + "\n"


def check(folder: pathlib.Path) -> None:
    """Raises DatasetError if a dataset holds squares by another definition than this program's, or by none."""
    if not has_field(folder, "square"):
        return
    try:
        stored = str(json_text.parse_object(read_regular(folder / FILE))["definition"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        stored = f"not stated in {FILE} ({error!r:.80})"
    if stored != definition():
        raise DatasetError(
            f"{folder}: the definition of its squares is {stored}, expected {definition()}, that of this version; "
            "compute them again from the pictures, which are stored beside them: "
            f"rahf prepare squares {folder} --size N --out {folder}"
        )
