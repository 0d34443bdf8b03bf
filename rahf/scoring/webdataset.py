"""The samples of a webdataset shard. Every member is part of a record, scored or refused.

The convention of webdataset: consecutive members whose names are equal up to the first dot are one sample, and what
follows the dot names its field. Generators write names with dots, too (``cfg7.5_001.png``): by the convention all these
were one sample. So the members of such a family whose names are equal up to the *last* dot are a sample of their own,
unless the family's own picture (``KEY.png``) shows that they are its further fields.

Archives are read as streams. No member is written to disk, so the name of a member cannot lead out of a folder.
"""

from __future__ import annotations

import contextlib
import posixpath
import tarfile
import zlib
from collections.abc import Iterator

from rahf.scoring import files
from rahf.scoring.blocks import IMAGES, MAX_IMAGE, MAX_TEXT, Block, one_line
from rahf.scoring.fields import PROMPT_COLUMNS, ReadOptions, ScoringRecord, checked, first, parse, prompt_text, refused

_PICTURES = tuple(ending[1:] for ending in IMAGES)
_NO_PICTURE = f"no picture ({', '.join(_PICTURES)})"
#: Samples of one family that wait for the family's own picture. More of them are samples of their own.
_MOST_WAITING = 16


def records_of_shard(block: Block, options: ReadOptions) -> Iterator[ScoringRecord]:
    """The records of a shard, in order. Of a damaged shard those before the damage.

    Raises:
      OSError: the source cannot be reached; the next attempt may succeed.
    """
    for row, record in enumerate(_records(block, options)):
        yield record._replace(row=row)


def _records(block: Block, options: ReadOptions) -> Iterator[ScoringRecord]:
    family = _Family("", options)
    try:
        with files.open_binary(block.source) as file, contextlib.closing(tarfile.open(fileobj=file, mode="r|*")) as tar:
            for member in tar:
                name = posixpath.normpath(member.name)
                if member.isdir():
                    continue
                if posixpath.basename(name).startswith("._"):
                    yield refused(0, name, "not a picture: metadata that macOS keeps beside a file")
                    continue
                if _family_key(name) != family.key:
                    yield from family.end()
                    family = _Family(_family_key(name), options)
                yield from family.add(name, tar, member)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        newest = family.newest()
        yield from family.end()
        # The newest sample may lack a part, so it is not scored.
        yield refused(0, newest or block.source, f"the shard is damaged from here on ({one_line(error)})")
        return
    yield from family.end()


def _family_key(name: str) -> str:
    """The name up to the first dot of its last component; dots at the start of a hidden name do not count."""
    folder, base = posixpath.split(name)
    bare = base.lstrip(".")
    return posixpath.join(folder, base[: len(base) - len(bare)] + bare.partition(".")[0])


class _Family:
    """The samples of one family whose members have been read so far."""

    def __init__(self, key: str, options: ReadOptions):
        self.key, self.options = key, options
        self._samples: dict[str, _Sample] = {}
        self._unused = ""  # a member that is neither picture nor text
        self._used = False  # whether there was a sample

    def add(self, name: str, tar: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[ScoringRecord]:
        """Reads a member that holds a picture, a prompt or fields. Yields the records that are complete by now."""
        stem, ending = posixpath.splitext(name)
        ending = ending[1:].lower()
        if ending not in (*_PICTURES, "txt", "json"):
            self._unused = name
            return
        self._used = True
        sample = self._samples.pop(stem, None) or _Sample(stem)
        self._samples[stem] = sample  # the newest is the last
        if ending in _PICTURES and sample.picture:
            yield refused(0, name, f"the sample {stem} has another picture, {sample.picture}")
            return
        sample.add(name, ending, tar, member)
        for other in list(self._samples.values())[:-1]:
            complete = other.image is not None and other.texts
            if other.key != self.key and (complete or len(self._samples) > _MOST_WAITING):
                yield self._samples.pop(other.key).record(self.options)

    def newest(self) -> str | None:
        """Takes out the sample to which a member was added last; returns its key, None if there is none."""
        return self._samples.popitem()[0] if self._samples else None

    def end(self) -> Iterator[ScoringRecord]:
        """The records of all samples that are left."""
        own = self._samples.get(self.key)
        for sample in self._samples.values():
            if sample is own or own is None or own.image is None:
                yield sample.record(self.options)
            elif sample.picture:
                if sample.texts:
                    yield sample.record(self.options)
                else:
                    yield refused(0, sample.picture, f"the sample {own.key} has another picture, {own.picture}")
        if not self._used and self._unused:
            yield refused(0, self._unused, _NO_PICTURE)


class _Sample:
    """The members of one sample that have been read so far."""

    def __init__(self, key: str):
        self.key, self.picture, self.image, self.error = key, "", None, ""
        self.texts: dict[str, bytes] = {}

    def add(self, name: str, ending: str, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        """Reads a member."""
        is_picture = ending in _PICTURES
        if not member.isreg():
            self.error = self.error or f"no picture: {name} is a link or a device, not a file"
            return
        if is_picture:
            self.picture = name
        most = MAX_IMAGE if is_picture else MAX_TEXT
        if member.size > most:
            self.error = f"{ending}: more than {most / 1e6:g} MB"
            return
        data = tar.extractfile(member).read()
        if len(data) < member.size:
            raise tarfile.ReadError("unexpected end of data")
        if is_picture:
            self.image = data
        else:
            self.texts[ending] = data

    def record(self, options: ReadOptions) -> ScoringRecord:
        """The sample as a record."""
        if self.error:
            return refused(0, self.key, self.error)
        if self.image is None:
            return refused(0, self.key, _NO_PICTURE)
        try:
            fields = parse(self.texts["json"]) if "json" in self.texts else {}
            text = prompt_text(self.texts["txt"]) if "txt" in self.texts else None
        except ValueError as error:
            return refused(0, self.key, str(error))
        from_json = first(fields, options.prompt_column, PROMPT_COLUMNS)
        prompt = options.prompt or (from_json if options.prompt_column else text or from_json)
        group = first(fields, options.group_column, ("group",))
        return checked(0, self.key, self.image, prompt, group, "prompt: no .txt, and no prompt in .json")
