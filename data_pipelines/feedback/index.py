"""First pass over a feedback file: which line goes into which split, and a digest of everything it names."""

from __future__ import annotations

import hashlib
import json
import pathlib
from typing import Any, NamedTuple

from data_pipelines.feedback import lines, splits
from data_pipelines.feedback.folder import Folder
from data_pipelines.feedback.lines import Line
from data_pipelines.prepare.counts import Refused
from rahf.core.batch import HEATMAPS


class Entry(NamedTuple):
    """Where a line stands."""

    number: int  # from 1
    offset: int  # bytes
    uid: str


class _Seen(NamedTuple):
    """A line, and by what it is split."""

    entry: Entry
    prompt: str  # key
    picture: str
    split: str | None  # its own


class Index:
    """What is remembered of a file: no labels, no pictures.

    Attributes:
      entries: by split, in order of the file; splits without lines are not in it.
      owners: for every uid the number of the line that may use it.
      refused: number, kind and reason of the lines whose picture or prompt is not known.
      sources: number of lines whose split comes from their field, from another line of their prompt, from its hash.
      prompts_in_two: prompts of training lines that are also in another split; `pictures_in_two` likewise.
      digest: sha256 of the file and of the names, sizes and times of change of the pictures and maps.
    """

    def __init__(self, path: pathlib.Path, folder: Folder, dev: float, test: float):
        """Reads the whole file once.

        Raises:
          DatasetError: no such file, or an empty one.
        """
        self.refused: list[tuple[int, str, str]] = []
        seen, self.digest = self._read(path, folder)
        prompts, given = [one.prompt for one in seen], [one.split for one in seen]
        assigned, followed = splits.assign(prompts, given, dev, test)
        by_field = len(given) - given.count(None)
        self.sources = {"field": by_field, "other line": followed, "hash": len(given) - by_field - followed}
        self.prompts_in_two = splits.in_two(prompts, assigned)
        self.pictures_in_two = splits.in_two([one.picture for one in seen], assigned)
        self.entries = {
            split: [one.entry for one, own in zip(seen, assigned) if own == split]
            for split in splits.SPLITS
            if split in assigned
        }
        self.owners: dict[str, int] = {}
        for split in splits.PRECEDENCE:
            for entry in self.entries.get(split, ()):
                self.owners.setdefault(entry.uid, entry.number)

    def __len__(self) -> int:
        return len(self.refused) + sum(map(len, self.entries.values()))

    def _read(self, path: pathlib.Path, folder: Folder) -> tuple[list[_Seen], str]:
        """The usable lines, and the digest."""
        seen: list[_Seen] = []
        digest = hashlib.sha256()
        with lines.open_file(path) as file:
            for number, offset, raw in lines.read(file):
                digest.update(raw)
                try:
                    line = lines.parse(raw)
                except Refused as why:
                    self.refused.append((number, why.kind, str(why)))
                    continue
                digest.update(json.dumps(_stamps(line, folder)).encode())
                entry = Entry(number, offset, line.uid)
                seen.append(_Seen(entry, splits.key(line.prompt), line.image or line.uid, line.split))
        return seen, digest.hexdigest()


def _stamps(line: Line, folder: Folder) -> list[Any]:
    """What is known of the files that a line names."""
    try:
        image = line.image or folder.picture_of(line.uid)
    except Refused as why:
        return [str(why)]
    maps = [line.tree[name] for name in HEATMAPS if isinstance(line.tree.get(name), str)]
    return [folder.stamp(name) for name in (image, *maps)]
