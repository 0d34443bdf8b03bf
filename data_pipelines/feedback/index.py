"""First pass over a feedback file: the split of every line, and a digest of the file and of the files that it names."""

from __future__ import annotations

import hashlib
import json
import pathlib
from typing import Any, NamedTuple

from data_pipelines.feedback import lines, splits
from data_pipelines.feedback.folder import Folder
from data_pipelines.feedback.lines import FeedbackLine
from data_pipelines.prepare.counts import Refused
from data_pipelines.prepare.splits import PRECEDENCE, SPLITS
from rahf.core.batch import HEATMAPS


class IndexedLine(NamedTuple):
    """The place of a line in the file, and its uid."""

    number: int  # from 1
    offset: int  # bytes
    uid: str


class _UsableLine(NamedTuple):
    """A line, and what its split depends on."""

    entry: IndexedLine
    prompt: str  # `splits.key` of the prompt
    picture: str
    split: str | None  # the line's own field


class Index:
    """The lines of a file by split, without labels and pictures.

    Attributes:
      entries: by split, in order of the file; splits without lines are not in it.
      owners: for every uid the number of the line that may use it.
      refused: number, kind and reason of the lines without a usable prompt or picture name.
      sources: number of lines whose split comes from their field, from another line with their prompt, from its hash.
      prompts_in_two: prompts of training lines that are also in another split; `pictures_in_two` likewise.
      digest: sha256 of the file and of the names, sizes and times of modification of the pictures and maps.
    """

    def __init__(self, path: pathlib.Path, folder: Folder, dev: float, test: float):
        """Reads the whole file once.

        Raises:
          DatasetError: no such file, or an empty one.
        """
        self.refused: list[tuple[int, str, str]] = []
        usable, self.digest = self._read(path, folder)
        prompts, own_splits = [line.prompt for line in usable], [line.split for line in usable]
        assigned, followed = splits.assign(prompts, own_splits, dev, test)
        by_field = len(own_splits) - own_splits.count(None)
        self.sources = {"field": by_field, "other line": followed, "hash": len(own_splits) - by_field - followed}
        self.prompts_in_two = splits.in_two(prompts, assigned)
        self.pictures_in_two = splits.in_two([line.picture for line in usable], assigned)
        self.entries = {
            split: [line.entry for line, line_split in zip(usable, assigned) if line_split == split]
            for split in SPLITS
            if split in assigned
        }
        self.owners: dict[str, int] = {}
        for split in PRECEDENCE:
            for entry in self.entries.get(split, ()):
                self.owners.setdefault(entry.uid, entry.number)

    def __len__(self) -> int:
        return len(self.refused) + sum(map(len, self.entries.values()))

    def _read(self, path: pathlib.Path, folder: Folder) -> tuple[list[_UsableLine], str]:
        """The usable lines, and the digest."""
        usable: list[_UsableLine] = []
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
                entry = IndexedLine(number, offset, line.uid)
                usable.append(_UsableLine(entry, splits.key(line.prompt), _picture(line, folder), line.split))
        return usable, digest.hexdigest()


def _picture(line: FeedbackLine, folder: Folder) -> str:
    """The file of a line's picture, links followed: however it is named, one picture is one."""
    try:
        return folder.resolve(line.image or folder.picture_of(line.uid))
    except (Refused, OSError, ValueError):
        return line.image or line.uid


def _stamps(line: FeedbackLine, folder: Folder) -> list[Any]:
    """Path, size and time of modification of the files that a line names."""
    try:
        image = line.image or folder.picture_of(line.uid)
    except Refused as why:
        return [str(why)]
    maps = [line.tree[name] for name in HEATMAPS if isinstance(line.tree.get(name), str)]
    return [folder.stamp(name) for name in (image, *maps)]
