"""First half of a preparation: reads all input. Pictures go to disk, captions stay in memory."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Collection, Sequence

from data_pipelines.prepare.counts import Refused
from data_pipelines.prepare.progress import Advance
from data_pipelines.richhf18k import captions as captions_lib
from data_pipelines.richhf18k import join
from data_pipelines.richhf18k.staging import Staging
from rahf.core.errors import DatasetError


class Pictures:
    """Pictures and captions by uid.

    Attributes:
      captions: by uid of every picture; None where no caption is known.
      again: number of repeated occurrences of a picture.
      unreadable: shards that could not be read to their end, and rows of captions files that cannot be used, with
        reasons.
    """

    def __init__(
        self,
        staging: Staging,
        units: Sequence[join.Unit],
        wanted: Collection[str],
        caption_files: Sequence[pathlib.Path],
        advance: Advance,
    ):
        """Reads the units that `staging` does not have yet, in order, and then the captions files."""
        self._staging = staging
        self.captions: dict[str, str | None] = {}
        self.again: dict[str, int] = {}
        self.unreadable: list[str] = []
        self._undecodable: dict[str, str] = {}
        advance("reading pictures", 0, len(units))
        for number, unit in enumerate(units):
            result = staging.finished(number)
            if result is None:
                result = join.extract(unit, wanted, self.captions, staging.put)
                staging.finish(number, result)
            self._merge(result)
            advance("reading pictures", number + 1, len(units))
        for file in caption_files:
            captions = captions_lib.load(file, self.captions)
            self.unreadable += captions.problems
            for uid, caption in captions.by_uid.items():
                self.captions[uid] = self.captions[uid] or caption

    def _merge(self, result: join.UnitResult) -> None:
        self.captions |= result.captions
        for uid, times in result.again.items():
            self.again[uid] = self.again.get(uid, 0) + times
        for uid, reason in result.undecodable.items():
            self._undecodable.setdefault(uid, reason)
        self.unreadable += [result.unreadable] if result.unreadable else []

    def find(self, uid: str) -> tuple[bytes, str]:
        """Encoded picture and caption.

        Raises:
          Refused: one of the two is missing, or the picture does not decode.
        """
        if uid not in self.captions:
            if uid in self._undecodable:
                raise Refused("undecodable", self._undecodable[uid])
            raise Refused("missing image", "no picture of this uid under --images")
        caption = self.captions[uid]
        if not caption:
            raise Refused("missing caption", "the picture is there, its caption is not; give --captions")
        return self._staging.get(uid), caption


def caption_files(captions: str | os.PathLike | None, images: Sequence[str | os.PathLike]) -> list[pathlib.Path]:
    """The captions file that was named, or else those that lie in the folders of images.

    Raises:
      DatasetError: the named file does not exist.
    """
    if captions is not None:
        if not pathlib.Path(captions).is_file():
            raise DatasetError(f"--captions {captions}: no such file")
        return [pathlib.Path(captions)]
    places = [pathlib.Path(folder, name) for folder in images for name in captions_lib.FILE_NAMES]
    return [place for place in places if place.is_file()]
