"""Access to the folder of pictures. Files outside it are never read."""

from __future__ import annotations

import os
import pathlib
import stat
import unicodedata

from data_pipelines.prepare.counts import Refused
from data_pipelines.prepare.stored_images import SUFFIXES
from rahf.core.errors import DatasetError
from rahf.core.files import read_regular

_MOST_BYTES = 1 << 29  # of an encoded file; a picture within the limit of pixels needs fewer
_IN_BOTH_CASES = tuple(suffix for lower in SUFFIXES for suffix in (lower, lower.upper()))


class Folder:
    """Files below one directory, by relative path."""

    def __init__(self, path: str | os.PathLike):
        """Raises DatasetError if there is no such directory."""
        if not os.path.isdir(path):
            state = "is a file" if os.path.exists(path) else "does not exist"
            raise DatasetError(f"--images {os.fspath(path)} {state}; expected the folder that the paths start from")
        self.root = os.path.realpath(path)

    def resolve(self, name: str) -> str:
        """The real path that a relative path leads to, symbolic links followed. It need not exist.

        If it does not, but a file does whose name is the same text in another Unicode form, its path is returned.

        Raises:
          Refused: the path is absolute, or leads out of the folder by ``..`` or a link.
        """
        path = self._resolve(name)
        if not os.path.exists(path):
            for form in ("NFC", "NFD"):
                other = self._resolve(unicodedata.normalize(form, name))
                if os.path.exists(other):
                    return other
        return path

    def _resolve(self, name: str) -> str:
        if os.path.isabs(name):
            raise Refused("outside the folder", f"{name!r:.200} is absolute; expected a path relative to --images")
        real = os.path.realpath(os.path.join(self.root, name))
        if not pathlib.PurePath(real).is_relative_to(self.root):
            raise Refused("outside the folder", f"{name!r:.200} leads out of --images; only files below it are read")
        return real

    def picture_of(self, uid: str) -> str:
        """Relative path of the picture ``<uid>.jpg``, ``.jpeg``, ``.png`` or ``.webp``.

        Raises:
          Refused: there is none of them, or the uid leads out of the folder.
        """
        for name in (uid + suffix for suffix in _IN_BOTH_CASES):
            if os.path.isfile(self.resolve(name)):
                return name
        raise Refused("missing image", f"no file {uid!r:.200} + {' | '.join(SUFFIXES)} below --images")

    def stamp(self, name: str) -> list:
        """Path, size and time of modification of a file; it changes whenever the file does."""
        try:
            status = os.stat(self.resolve(name))
            return [name, status.st_size, status.st_mtime_ns]
        except (OSError, ValueError, Refused) as error:  # ValueError: the name cannot be a path
            return [name, type(error).__name__]

    def read(self, name: str, kind: str) -> bytes:
        """The bytes of a file.

        Args:
          name: relative path.
          kind: what it is, "image" or "map".

        Raises:
          Refused: outside the folder, not there, or not a readable file.
        """
        path = self.resolve(name)
        try:
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):
                raise Refused("undecodable", f"{name!r:.200} is not a file")
            if status.st_size > _MOST_BYTES:
                raise Refused("undecodable", f"{name!r:.200} has {status.st_size} bytes; make it smaller")
            return read_regular(pathlib.Path(path))
        except FileNotFoundError:
            raise Refused(f"missing {kind}", f"no file {name!r:.200} below --images") from None
        except OSError as error:
            raise Refused("undecodable", f"{name!r:.200} cannot be read ({error.strerror or error})") from error
