"""The container of an exported model: an uncompressed zip in which a checksum covers every byte.

`manifest.json` lists the SHA-256 of every part. The zip's comment, which is the end of the file, holds the SHA-256 of
all bytes before it. The reader extracts nothing to disk. This module needs the standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
import stat
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO

from rahf.core import json_text, names
from rahf.core.errors import ExportError
from rahf.core.files import open_regular, replacing

#: Version of the format that is written. Older ones are read, newer ones refused. 2 spells `weight_license` in the
#: manifest, 1 spelled it with a c.
FORMAT = 2
MANIFEST = "manifest.json"
_SEAL = b"rahf sha256 "
_DIGITS = 64
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
_MAX_PARTS = 100


def write_archive(path: str | os.PathLike, parts: Mapping[str, bytes], manifest: Mapping[str, Any]) -> None:
    """Writes a file; an existing one is replaced only by a complete one.

    Args:
      path: the file.
      parts: content by member name.
      manifest: further entries of the manifest, beside `format` and `parts`. The same arguments give the same bytes.

    Raises:
      ExportError: the name of a part is not safe, or the file cannot be written.
    """
    path = pathlib.Path(path)
    listed = {n: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for n, data in parts.items()}
    manifest = {"format": FORMAT, **manifest, "parts": listed}
    members = {MANIFEST: (json.dumps(manifest, indent=1) + "\n").encode(), **parts}
    for name in members:
        if not _NAME.fullmatch(name):
            raise ExportError(f"{path}: {name!r} is not a safe name for a part")
    try:
        with replacing(path) as unfinished:
            write_zip(unfinished, members)
            seal(unfinished)
    except OSError as error:
        raise ExportError(f"{path}: cannot be written ({error})") from error


def write_zip(path: pathlib.Path, members: Mapping[str, bytes]) -> None:
    """Writes members uncompressed and undated, and a placeholder for the seal as the zip's comment."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)  # dated 1980, so that the same model gives the same bytes
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(info, data)
        archive.comment = _SEAL + b"0" * _DIGITS


def seal(path: pathlib.Path) -> None:
    """Replaces the placeholder of `write_zip` by the SHA-256 of all bytes before it."""
    with open(path, "r+b") as file:
        digest = _sha256(file, path.stat().st_size - _DIGITS)
        file.seek(-_DIGITS, os.SEEK_END)
        file.write(digest.encode())
        file.flush()
        os.fsync(file.fileno())


def _sha256(file: BinaryIO, length: int) -> str:
    """Of the first `length` bytes, without reading them all into memory."""
    digest, left = hashlib.sha256(), length
    file.seek(0)
    while left > 0 and (chunk := file.read(min(left, 1 << 20))):
        digest.update(chunk)
        left -= len(chunk)
    return digest.hexdigest()


def read_archive(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Reads and checks a file.

    Returns:
      The manifest, and the content of the parts by member name.

    Raises:
      ExportError: the file is not an exported model, is newer than this reader, was changed or truncated, or has a
        member that is unsafe or not listed.
    """
    path = pathlib.Path(path)
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            return _read_checked(path, file, archive)
    except zipfile.BadZipFile as error:
        raise ExportError(
            f"{path}: {error}; expected a file of `rahf export`. It is something else, or truncated, or was changed"
        ) from error
    except (OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise ExportError(f"{path}: cannot be read ({error}); copy or export it again") from error


def is_archive(path: str | os.PathLike) -> bool:
    """Whether a file is an export, complete or not: a zip that begins with a manifest, or ends with a seal."""
    start = b"PK\x03\x04" + bytes(26)
    with open(path, "rb") as file:
        head = file.read(len(start) + len(MANIFEST))
        file.seek(max(0, file.seek(0, os.SEEK_END) - len(_SEAL) - _DIGITS))
        return head[:4] == start[:4] and head.endswith(MANIFEST.encode()) or file.read().startswith(_SEAL)


def kind_of(path: str | os.PathLike) -> str:
    """What a file holds by its manifest, "critic" if it does not say; nothing is checked, `read_archive` does that."""
    try:
        with zipfile.ZipFile(path) as archive:
            kind = json_text.parse_object(archive.read(MANIFEST)).get("kind", "critic")
    except (OSError, EOFError, ValueError, KeyError, NotImplementedError, RuntimeError, zipfile.BadZipFile):
        return "critic"  # whose reader says what is wrong
    return kind if isinstance(kind, str) else "critic"


def _read_checked(
    path: pathlib.Path, file: BinaryIO, archive: zipfile.ZipFile
) -> tuple[dict[str, Any], dict[str, bytes]]:
    infos = archive.infolist()
    _check_members(path, infos)
    manifest = _read_manifest(path, archive)
    listed = manifest["parts"]
    parts: dict[str, bytes] = {}
    for info in infos:
        if info.filename == MANIFEST:
            continue
        if info.filename not in listed:
            raise ExportError(f"{path}: part {info.filename!r} is not listed in its manifest; it was added later")
        data = archive.read(info)
        if hashlib.sha256(data).hexdigest() != listed[info.filename].get("sha256"):
            raise ExportError(f"{path}: part {info.filename!r} was changed after the export; copy or export it again")
        parts[info.filename] = data
    missing = sorted(set(listed) - set(parts))
    if missing:
        raise ExportError(f"{path}: part {missing[0]!r} is missing; copy or export it again")
    if not _is_sealed(file):
        raise ExportError(f"{path}: a byte outside of the parts was changed after the export; copy or export it again")
    return manifest, parts


def _is_sealed(file: BinaryIO) -> bool:
    """Whether the end of the file is the SHA-256 of all bytes before it."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - len(_SEAL) - _DIGITS))
    end = file.read()
    return end.startswith(_SEAL) and end[len(_SEAL) :].decode("latin-1") == _sha256(file, size - _DIGITS)


def _check_members(path: pathlib.Path, infos: list[zipfile.ZipInfo]) -> None:
    names = [info.filename for info in infos]
    if len(names) > _MAX_PARTS or len({name.casefold() for name in names}) < len(names):
        raise ExportError(f"{path}: too many members, or two of one name; not written by `rahf export`")
    for info in infos:
        kind = stat.S_IFMT(info.external_attr >> 16)
        # Not `filename`: zipfile has cut that one at a NUL and replaced backslashes.
        if not _NAME.fullmatch(info.orig_filename) or kind not in (0, stat.S_IFREG):
            raise ExportError(
                f"{path}: member {info.orig_filename!r} is not a plain file with a safe name; it was tampered with"
            )
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise ExportError(f"{path}: member {info.filename!r} is compressed or encrypted; it was packed anew")


def _read_manifest(path: pathlib.Path, archive: zipfile.ZipFile) -> dict[str, Any]:
    try:
        manifest = json_text.parse_object(archive.read(MANIFEST))
        version, parts = manifest["format"], manifest["parts"]
    except (KeyError, TypeError, ValueError) as error:
        raise ExportError(f"{path}: no exported model: it has no readable {MANIFEST}") from error
    if not isinstance(version, int) or isinstance(version, bool) or not 0 < version < 1 << 31:
        raise ExportError(f"{path}: its {MANIFEST} names no format; copy or export it again")
    if not isinstance(parts, dict):
        raise ExportError(f"{path}: its {MANIFEST} is damaged; copy or export it again")
    if version > FORMAT:
        writer = names.one_line(manifest.get("rahf", "unknown"), 40)
        raise ExportError(
            f"{path}: format {version}, written by rahf {writer}; this reader knows formats "
            f"up to {FORMAT}. Install a newer rahf"
        )
    if not all(isinstance(entry, dict) for entry in parts.values()):
        raise ExportError(f"{path}: its {MANIFEST} is damaged; copy or export it again")
    return manifest
