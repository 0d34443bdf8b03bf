"""The working directory of a preparation, ``OUT.partial``. It lets an interrupted run go on.

It holds the plan (a digest of all inputs), the pictures extracted so far, and one small file per finished unit. A
unit's file is written last and atomically: a unit without it is read again.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil

from data_pipelines.richhf18k.join import UnitResult
from data_pipelines.store.layout import contents
from rahf.core import json_text
from rahf.core.errors import DatasetError
from rahf.core.files import UNFINISHED, disk_full_named, read_regular, write_atomically

_PLAN = "plan.json"


class Staging:
    """Pictures by uid, and the results of finished units."""

    def __init__(self, folder: pathlib.Path, plan: str):
        """Opens or makes the directory; removes the content of one that belongs to another plan.

        Args:
          folder: the directory.
          plan: digest of the inputs.

        Raises:
          DatasetError: the directory holds something else.
        """
        self.folder = folder
        self.continues = False
        if folder.exists():
            self.continues = self._read_plan() == plan
            if not self.continues:
                shutil.rmtree(folder)
        (folder / "units").mkdir(parents=True, exist_ok=True)
        (folder / "images").mkdir(exist_ok=True)
        write_atomically(folder / _PLAN, json.dumps({"plan": plan}))

    def _read_plan(self) -> str | None:
        try:
            return json_text.parse(read_regular(self.folder / _PLAN))["plan"]
        except (ValueError, KeyError, TypeError):
            return None
        except OSError as error:
            if self.folder.is_dir() and all(map(_is_ours, os.listdir(self.folder))):
                return None
            raise DatasetError(
                f"{self.folder} is needed for intermediate results but holds something else "
                f"({contents(self.folder) if self.folder.is_dir() else 'a file'}); move it away"
            ) from error

    def finished(self, number: int) -> UnitResult | None:
        """The result of unit `number`; None if it was not read to its end."""
        try:
            return UnitResult(**json_text.parse(read_regular(self._unit(number))))
        except (FileNotFoundError, ValueError, TypeError):  # not there, or damaged: the unit is read again
            return None

    def finish(self, number: int, result: UnitResult) -> None:
        """Stores the result of unit `number`, which was read to its end."""
        write_atomically(self._unit(number), json.dumps(result._asdict()))

    def put(self, uid: str, data: bytes) -> None:
        """Stores a picture."""
        file = self._image(uid)
        with disk_full_named(self.folder):
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(data)

    def get(self, uid: str) -> bytes:
        """The stored picture of a uid."""
        return read_regular(self._image(uid))

    def remove(self) -> None:
        """Deletes everything; the dataset is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _unit(self, number: int) -> pathlib.Path:
        return self.folder / "units" / f"{number:06d}.json"

    def _image(self, uid: str) -> pathlib.Path:
        name = hashlib.sha256(uid.encode()).hexdigest()  # a uid may hold characters that a file name may not
        return self.folder / "images" / name[:2] / name


def _is_ours(name: str) -> bool:
    """Whether a run that was killed before its plan was written may have left this name."""
    return name in ("units", "images") or name.endswith((UNFINISHED, ".part"))  # ".part": version 0
