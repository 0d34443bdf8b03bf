"""`rahf prepare regions`: a COCO file and a folder of pictures → a dataset with implausibility maps."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from rich.text import Text

from data_pipelines import store
from data_pipelines.feedback.folder import Folder
from data_pipelines.prepare import splits
from data_pipelines.prepare.counts import (
    PreparationCounts,
    Refused,
    print_report,
    stored_counts,
    summary_files,
)
from data_pipelines.prepare.dataset_source import NOT_STATED
from data_pipelines.prepare.datasheet import DataSheet
from data_pipelines.prepare.progress import Advance, progress_bars
from data_pipelines.prepare.stored_images import encode_map, storable
from data_pipelines.prepare.vocabulary import read_vocabulary
from data_pipelines.regions import coco, shapes
from data_pipelines.store.records import Record
from rahf import images as images_lib
from rahf import text
from rahf.core import names, terminal
from rahf.core.batch import SCORES
from rahf.core.errors import DatasetError
from rahf.core.files import read_regular

_PLAN_VERSION = 1  # raise it when a change lets the same inputs give other bytes
_SLACK = 0.02  # largest relative difference between the aspect ratios of a picture and of its entry
_DESCRIPTION = (
    "Regions of generated pictures that people marked as artifacts, as implausibility maps: 255 = marked, or most "
    "severe. Scores and words are missing."
)
NO_SPLIT = "no split"


@dataclasses.dataclass
class RegionCounts(PreparationCounts):
    """Counts of a preparation.

    Attributes:
      without_picture: annotations of pictures that the file does not list.
      largest_severity: what severities were divided by; 1: they are weights in 0..1, or there are none.
      unread: fields that are not read, with their numbers.
      prompts: pictures with a prompt.
    """

    title: ClassVar[str] = "regions"
    refusals: ClassVar[tuple[str, ...]] = (
        "missing image",
        "missing field",
        "outside the folder",
        "undecodable",
        "duplicates",
        "picture of another shape",
        "bad region",
        "malformed",
    )
    notes: ClassVar[tuple[str, ...]] = ("regions", "pictures without a region", "regions outside the picture")
    without_picture: int = 0
    largest_severity: float = 1.0
    unread: dict[str, int] = dataclasses.field(default_factory=dict)
    prompts: int = 0

    def remarks(self) -> list[str]:
        lines = super().remarks()
        if self.largest_severity > 1:
            lines.append(f"severities were divided by the largest, {self.largest_severity:g}")
        if self.without_picture:
            lines.append(f"warning: {self.without_picture} annotations belong to no picture of the file")
        if self.unread:
            lines.append("fields that are not read: " + ", ".join(f"{n} ({c})" for n, c in sorted(self.unread.items())))
        if not self.prompts:
            lines.append(
                "warning: no picture has a prompt, so no vocabulary was learnt: give --tokenizer, or train it after "
                "another dataset (--data.path OTHER THIS)"
            )
        return lines


def prepare(
    annotations: str | os.PathLike,
    images: str | os.PathLike,
    out: str | os.PathLike,
    tokenizer: str | os.PathLike | None = None,
    severity: str = "severity",
    license: str | None = None,
    dev: float = 0.1,
    test: float = 0.1,
    progress: bool = True,
) -> RegionCounts:
    """Makes a dataset of boxes, polygons or masks of artifacts.

    A pixel of a map has the largest weight of the regions that it belongs to. A picture without regions has an empty
    map: COCO lists it, so somebody looked. Pictures that cannot be used are counted and listed in
    ``OUT/refused.jsonl``. A finished run with unchanged inputs returns at once.

    Args:
      annotations: COCO JSON file. A picture may have a `prompt` or `caption`, and a `split`.
      images: folder that `file_name` starts from; nothing outside it is read.
      out: directory to make; a dataset in its place is replaced.
      tokenizer: SentencePiece vocabulary to put beside the data; default: a small one is trained on the prompts.
      severity: field of an annotation that weights its region. Values above 1 are divided by the largest of the file.
      license: of the data, for the data sheet; None: as the file states it.
      dev, test: shares to hold out, by a hash of the prompt, or of the file's name where there is none.
      progress: print progress and, at the end, the table.

    Raises:
      DatasetError: no COCO file, no such folder, or nothing that can be used.
    """
    target = pathlib.Path(os.path.abspath(out))
    store.check_replaceable(target)
    splits.check_shares(dev, test)
    console = terminal.console(quiet=not progress)
    vocabulary = read_vocabulary(tokenizer)
    folder, file = Folder(images), pathlib.Path(annotations)
    parsed = coco.read(file, severity)
    plan = _digest(file, folder, parsed, [vocabulary and hashlib.sha256(vocabulary).hexdigest(), severity, license, dev,
                                          test])  # fmt: skip
    counts = stored_counts(RegionCounts, target, plan)
    if counts is not None:
        console.print(Text(names.one_line(f"{target} is complete and its inputs have not changed")), soft_wrap=True)
    else:
        with progress_bars(console) as advance:
            run = _Run(file, folder, parsed, severity, (dev, test), advance)
            counts = run.write(target, vocabulary, plan, license or parsed.license or NOT_STATED)
    print_report(console, counts, target)
    return counts


class _Run:
    def __init__(
        self,
        file: pathlib.Path,
        folder: Folder,
        parsed: coco.CocoFile,
        severity: str,
        shares: tuple[float, float],
        advance: Advance,
    ):
        self.file, self.folder, self.parsed, self.severity, self.advance = file, folder, parsed, severity, advance
        self.counts = RegionCounts(
            without_picture=parsed.without_picture, largest_severity=parsed.largest_severity, unread=parsed.unread
        )
        self.refused: list[dict[str, Any]] = []
        self.prompts: dict[str, None] = {}
        self.uids: set[str] = set()
        self.pictures: dict[str, list[coco.CocoPicture]] = {}
        for picture in parsed.pictures:
            try:
                split = coco.split_of(picture, *shares)
            except Refused as why:
                self._refuse(NO_SPLIT, picture, why)
            else:
                self.pictures.setdefault(split, []).append(picture)

    def write(self, target: pathlib.Path, vocabulary: bytes | None, plan: str, license: str) -> RegionCounts:
        """Writes the dataset. Raises DatasetError if nothing can be used."""
        present = [split for split in splits.SPLITS if split in self.pictures]
        for split in present:
            if split not in self.counts.splits:
                self.counts.add_split(split)
        if any(map(coco.prompt_of, self.parsed.pictures)) and vocabulary is None:
            vocabulary = text.train_tokenizer([p for p in map(coco.prompt_of, self.parsed.pictures) if p])
        sheet = DataSheet(f"Regions in {self.file.name}", source=os.fspath(self.file), license=license)
        extra = {**summary_files(plan, self.counts, self.refused), **sheet.files(self.counts)}
        records = sheet.watch({split: self._records(split) for split in present})
        try:
            store.write_dataset(target, records, _DESCRIPTION, vocabulary, extra)
        except DatasetError as error:
            if self.counts.total("joined"):
                raise
            first = "".join(f"\n  {line['image']}: {line['reason']}" for line in self.refused[:5])
            raise DatasetError(
                f"{self.file}: none of its {len(self.parsed.pictures)} pictures can be used"
                + (f". First reasons:{first}" if first else "; its list of images is empty")
            ) from error
        return self.counts

    def _records(self, split: str) -> Iterator[Record]:
        for picture in self.pictures[split]:
            self.counts.count(split, "records")
            try:
                record = self._record(split, picture)
            except Refused as why:
                self._refuse(split, picture, why)
            else:
                self.counts.count(split, "joined")
                yield record
            self.advance("writing records", self.counts.total("records"), len(self.parsed.pictures))

    def _record(self, split: str, picture: coco.CocoPicture) -> Record:
        name = picture.tree.get("file_name")
        if not isinstance(name, str) or not name:
            raise Refused("missing field", f"file_name is {name!r:.60}, so no picture can be found")
        if name in self.uids:
            raise Refused("duplicates", f"another entry has the file {name!r:.100}")
        try:
            image = storable(self.folder.read(name, "image"), name)
        except images_lib.ImageError as error:
            raise Refused("undecodable", str(error)) from error
        header = images_lib.check_header(image)
        size = header.height, header.width
        grey = self._map(split, picture, _listed(picture, size), size)
        prompt = coco.prompt_of(picture)
        self.counts.prompts += bool(prompt)
        self.uids.add(name)
        return Record(
            uid=name,
            prompt=prompt,
            words=tuple(text.split_words(prompt)),
            word_labels=None,
            image=image,
            implausibility=encode_map(grey),
            misalignment=None,
            scores=np.full(len(SCORES), math.nan, np.float32),
        )

    def _map(self, split: str, picture: coco.CocoPicture, listed: shapes.Size, size: shapes.Size) -> np.ndarray:
        """uint8 [h,w]: of each pixel the largest weight of its regions."""
        grey = np.zeros(size, np.uint8)
        regions = coco.regions_of(picture)
        outside = 0
        for annotation in regions:
            weight = coco.weight_of(annotation, self.severity, self.parsed.largest_severity)
            mask = shapes.mask_of(annotation, listed, size)
            outside += not mask.any()
            np.maximum(grey, np.uint8(round(255 * weight)), out=grey, where=mask)
        self.counts.splits[split]["regions"] += len(regions)
        self.counts.splits[split]["regions outside the picture"] += outside
        if not regions:
            self.counts.count(split, "pictures without a region")
        return grey

    def _refuse(self, split: str, picture: coco.CocoPicture, why: Refused) -> None:
        if split not in self.counts.splits:
            self.counts.add_split(split)
        if split == NO_SPLIT:
            self.counts.count(split, "records")
        self.counts.count(split, why.kind)
        line = {"image": picture.tree.get("file_name"), "number": picture.number, "kind": why.kind, "reason": str(why)}
        self.refused.append(line)


def _listed(picture: coco.CocoPicture, size: shapes.Size) -> shapes.Size:
    """Height and width to which coordinates refer: of the entry, or the picture's own.

    Raises:
      Refused: no size, or another aspect ratio than the picture's.
    """
    height, width = picture.tree.get("height"), picture.tree.get("width")
    if height is None and width is None:
        return size
    if not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in (height, width)):
        raise Refused("malformed", f"width and height are {width!r:.40} and {height!r:.40}, expected two numbers")
    # Rounding a side to whole pixels changes the product by as much as the other side.
    if abs(height * size[1] - width * size[0]) > max(_SLACK * height * size[1], max(size)):
        raise Refused(
            "picture of another shape",
            f"the file lists {width} x {height} pixels, the picture has {size[1]} x {size[0]}, which is another shape",
        )
    return height, width


def _digest(file: pathlib.Path, folder: Folder, parsed: coco.CocoFile, options: list[Any]) -> str:
    names = [one.tree.get("file_name") for one in parsed.pictures]
    stamps = [folder.stamp(name) for name in names if isinstance(name, str)]
    inputs = [_PLAN_VERSION, hashlib.sha256(read_regular(file)).hexdigest(), stamps, options]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()
