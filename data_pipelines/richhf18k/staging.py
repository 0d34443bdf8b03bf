"""The working directory of a preparation, ``OUT.partial``: what makes an interrupted run go on where it was.

It holds the plan (a digest of all inputs), the pictures found so far, and one small file per finished unit.
A unit's file is written last and by renaming, so a unit without it is simply read again.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil

from data_pipelines.richhf18k.join import Found
from data_pipelines.store.layout import contents
from rahf.core.errors import DatasetError

_PLAN = "plan.json"


class Staging:
    """Pictures by uid, and which units are done."""

    def __init__(self, folder: pathlib.Path, plan: str):
        """Opens or makes the directory; one that was made for another plan is emptied.

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
        write_atomically(folder / _PLAN, json.dumps({"plan": plan}).encode())

    def _read_plan(self) -> str | None:
        try:
            return json.loads((self.folder / _PLAN).read_text())["plan"]
        except (json.JSONDecodeError, KeyError, TypeError):
            return None
        except OSError as error:
            if self.folder.is_dir() and set(os.listdir(self.folder)) <= {"units", "images", _PLAN + ".part"}:
                return None
            raise DatasetError(
                f"{self.folder} is needed for intermediate results but holds something else "
                f"({contents(self.folder) if self.folder.is_dir() else 'a file'}); move it away"
            ) from error

    def finished(self, number: int) -> Found | None:
        """What unit `number` gave, if it was read completely."""
        try:
            return Found(**json.loads(self._unit(number).read_text()))
        except FileNotFoundError:
            return None

    def finish(self, number: int, found: Found) -> None:
        """Notes that unit `number` was read completely."""
        write_atomically(self._unit(number), json.dumps(found._asdict()).encode())

    def put(self, uid: str, data: bytes) -> None:
        """Keeps a picture."""
        file = self._image(uid)
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(data)

    def get(self, uid: str) -> bytes:
        """The picture kept under a uid."""
        return self._image(uid).read_bytes()

    def remove(self) -> None:
        """Deletes everything; the dataset is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _unit(self, number: int) -> pathlib.Path:
        return self.folder / "units" / f"{number:06d}.json"

    def _image(self, uid: str) -> pathlib.Path:
        name = hashlib.sha256(uid.encode()).hexdigest()  # a uid may hold what a file name may not
        return self.folder / "images" / name[:2] / name


def write_atomically(path: pathlib.Path, content: bytes) -> None:
    """Writes under a temporary name, then renames."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(content)
    temporary.rename(path)
