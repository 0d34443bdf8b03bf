"""`rahf prepare gazefusion`: pictures with captions → square crops with saliency maps, to train a ControlNet on.

Three defects of the published program are not here: a dataset appears whole or not at all, so no batch is lost between
two runs; a crop without a map has no record; and a picture's name is its whole path, so ``a.b.jpg`` and ``a.c.jpg``
are two.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import simplejpeg
from rich.text import Text
from scipy import ndimage

from data_pipelines import store
from data_pipelines.gaze import density
from data_pipelines.gazefusion import crops as crops_lib
from data_pipelines.gazefusion.captioner import Captioner
from data_pipelines.planted import pictures as pictures_lib
from data_pipelines.planted.pictures import Picture
from data_pipelines.prepare import splits
from data_pipelines.prepare.counts import PreparationCounts, print_report, stored_counts, summary_files
from data_pipelines.prepare.dataset_source import NOT_STATED
from data_pipelines.prepare.datasheet import DataSheet
from data_pipelines.prepare.progress import Advance, progress_bars
from data_pipelines.store.records import Record
from rahf import images as images_lib
from rahf.core import names, terminal
from rahf.core.batch import SCORES
from rahf.core.errors import DatasetError, NotFinite
from rahf.core.files import read_regular
from rahf.images.resize import resize
from rahf.text import split_words

_PLAN_VERSION = 1  # raise it when a change lets the same inputs give other bytes
_SIGMA = 10.0  # pixels of a crop of 512 (spec 8.1)
_DESCRIPTION = "Square crops of pictures, where a model expects people to look at them, and what they show."

#: uint8 [s,s,3] pictures → their densities [h,w], not negative, of any scale and size.
Predict = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]


@dataclasses.dataclass
class GazeFusionCounts(PreparationCounts):
    """Counts of a preparation: of crops, and of pictures that give none."""

    title: ClassVar[str] = "gazefusion"
    refusals: ClassVar[tuple[str, ...]] = ("no caption", "undecodable", "near-black crop", "flat saliency")
    notes: ClassVar[tuple[str, ...]] = ("pictures", "same picture again", "captioned by a model")

    def remarks(self) -> list[str]:
        lines = super().remarks()
        if without := self.total("no caption"):
            lines.append(
                f"warning: {without} pictures have no caption and were left out; --captioner MODEL describes them"
            )
        return lines


class Options(NamedTuple):
    """How crops and maps are made.

    Attributes:
      side: of the crops in pixels.
      sigma: standard deviation of the Gaussian over a map, in pixels of a crop of 512.
      batch_size: crops that the saliency model sees at once.
    """

    side: int = crops_lib.SIDE
    sigma: float = _SIGMA
    batch_size: int = 8


class _Crop(NamedTuple):
    uid: str
    prompt: str | None  # None: the captioner is asked
    pixels: np.ndarray


def prepare(
    folder: str | os.PathLike,
    out: str | os.PathLike,
    predict: Predict,
    model_id: str,
    captions: str | os.PathLike | None = None,
    options: Options = Options(),
    license: str | None = None,
    dev: float = 0.05,
    test: float = 0.05,
    progress: bool = True,
    captioner: Captioner | None = None,
) -> GazeFusionCounts:
    """Makes a dataset of (crop, saliency, caption).

    Pictures are resized to a shorter side of 512 and cut into squares with a stride of 256. Maps are blurred and
    brought to 0..1 by their least and largest value. All crops of a picture, also of one that lies there under two
    names, are in one split. A finished run with unchanged inputs returns at once.

    Args:
      folder: of pictures; see `data_pipelines.planted.pictures.find` for their captions.
      out: directory to make; a dataset in its place is replaced.
      predict: says where people look.
      model_id: of the model behind `predict`, for the data sheet and to tell other inputs.
      captions: file of captions by name of the picture.
      options: of crops and maps.
      license: of the pictures, for the data sheet.
      dev, test: shares of the pictures to hold out, by a hash of their bytes.
      progress: print progress and, at the end, the table.
      captioner: describes the crops of pictures without a caption; None: they are left out.

    Raises:
      DatasetError: no such folder, options that make no sense, or nothing that can be used.
      NotFinite: the model predicts NaN or infinity.
    """
    target = pathlib.Path(os.path.abspath(out))
    store.check_replaceable(target)
    splits.check_shares(dev, test)
    if options.side < 8 or options.batch_size < 1 or not (math.isfinite(options.sigma) and options.sigma >= 0):
        raise DatasetError(f"--size, --batch-size, --sigma: expected at least 8, 1 and 0, found {tuple(options)}")
    root = pathlib.Path(folder)
    listed = pictures_lib.find(root, captions)
    console = terminal.console(quiet=not progress)
    for line in listed.problems:
        console.print(Text(names.one_line(f"warning: {line}"), "yellow"), soft_wrap=True)
    plan = _digest(root, listed.pictures, [model_id, list(options), license, dev, test, *_name(captioner)])
    counts = stored_counts(GazeFusionCounts, target, plan)
    if counts is not None:
        console.print(Text(names.one_line(f"{target} is complete and its inputs have not changed")), soft_wrap=True)
    else:
        with progress_bars(console) as advance:
            run = _Run(root, listed.pictures, predict, options, (dev, test), advance, captioner)
            counts = run.write(target, plan, model_id, license or NOT_STATED)
    print_report(console, counts, target)
    return counts


class _Run:
    def __init__(
        self,
        root: pathlib.Path,
        pictures: Sequence[Picture],
        predict: Predict,
        options: Options,
        shares: tuple[float, float],
        advance: Advance,
        captioner: Captioner | None,
    ):
        self.root, self.pictures, self.predict, self.options = root, pictures, predict, options
        self.shares, self.advance, self.captioner = shares, advance, captioner
        self.counts = GazeFusionCounts()
        self.refused: list[dict[str, Any]] = []
        self.digests: set[str] = set()
        self.done = 0

    def write(self, target: pathlib.Path, plan: str, model_id: str, license: str) -> GazeFusionCounts:
        """Writes the dataset. Raises DatasetError if nothing can be used."""
        by_split: dict[str, list[Picture]] = {}
        for picture in self.pictures:
            by_split.setdefault(self._split_of(picture), []).append(picture)
        present = [split for split in splits.SPLITS if split in by_split]
        for split in present:
            self.counts.add_split(split)
        notes = [f"saliency by {model_id}, blurred by {self.options.sigma:g} pixels of 512"]
        notes += [f"crops of pictures without a caption were described by {name}" for name in _name(self.captioner)]
        sheet = DataSheet("GazeFusion", source=os.fspath(self.root), license=license, notes=notes)
        extra = {**summary_files(plan, self.counts, self.refused), **sheet.files(self.counts)}
        records = sheet.watch({split: self._records(split, by_split[split]) for split in present})
        try:
            store.write_dataset(target, records, _DESCRIPTION, None, extra, optional=("saliency",))
        except DatasetError as error:
            if self.counts.total("joined"):
                raise
            first = "".join(f"\n  {line['image']}: {line['reason']}" for line in self.refused[:5])
            raise DatasetError(
                f"{self.root}: none of its {len(self.pictures)} pictures can be used. First reasons:{first}"
            ) from error
        return self.counts

    def _split_of(self, picture: Picture) -> str:
        try:
            digest = hashlib.sha256(read_regular(self.root / picture.name)).hexdigest()
        except OSError:
            digest = picture.name  # it is refused when its turn comes
        return splits.by_hash(digest, *self.shares)

    def _records(self, split: str, pictures: Sequence[Picture]) -> Iterator[Record]:
        batch: list[_Crop] = []
        for picture in pictures:
            for crop in self._crops(split, picture):
                batch.append(crop)
                if len(batch) == self.options.batch_size:
                    yield from self._mapped(split, batch)
                    batch = []
            self.done += 1
            self.advance("cutting pictures", self.done, len(self.pictures))
        if batch:
            yield from self._mapped(split, batch)

    def _crops(self, split: str, picture: Picture) -> Iterator[_Crop]:
        self.counts.count(split, "pictures")
        if picture.prompt is None and self.captioner is None:
            self._refuse(split, picture.name, "no caption", "neither a text beside the picture nor a line of captions")
            return
        try:
            data = read_regular(self.root / picture.name)
            pixels = images_lib.load_rgb(data, what=picture.name)
        except (OSError, images_lib.ImageError) as error:
            self._refuse(split, picture.name, "undecodable", str(error))
            return
        digest = hashlib.sha256(data).hexdigest()
        if digest in self.digests:
            self.counts.count(split, "same picture again")
        self.digests.add(digest)
        for number, crop in enumerate(crops_lib.crops(pixels, self.options.side)):
            uid = f"{picture.name}#{number}"
            if crops_lib.is_black(crop):
                self._refuse(split, uid, "near-black crop", f"its mean grey is {crop.mean():.2f} of 255")
            else:
                yield _Crop(uid, picture.prompt, np.ascontiguousarray(crop))

    def _mapped(self, split: str, batch: Sequence[_Crop]) -> Iterator[Record]:
        maps = self.predict([crop.pixels for crop in batch])
        prompts = self._prompts(split, batch)
        for crop, prompt, saliency in zip(batch, prompts, maps, strict=True):
            if not split_words(prompt):
                self._refuse(split, crop.uid, "no caption", f"{self.captioner.name} says nothing of it")
                continue
            unit = to_unit(saliency, self.options.side, self.options.sigma)
            if unit is None:
                self._refuse(split, crop.uid, "flat saliency", "the model expects people to look everywhere alike")
                continue
            self.counts.count(split, "records")
            self.counts.count(split, "joined")
            yield Record(
                uid=crop.uid,
                prompt=prompt,
                words=tuple(split_words(prompt)),
                word_labels=None,
                image=simplejpeg.encode_jpeg(crop.pixels, quality=95, colorspace="RGB", colorsubsampling="444"),
                implausibility=None,
                misalignment=None,
                scores=np.full(len(SCORES), math.nan, np.float32),
                saliency=density.encode(unit),
            )

    def _prompts(self, split: str, batch: Sequence[_Crop]) -> list[str]:
        """The captions of crops; the captioner's where nobody wrote one."""
        without = [crop for crop in batch if crop.prompt is None]
        if not without:
            return [crop.prompt for crop in batch]
        for _ in without:
            self.counts.count(split, "captioned by a model")
        texts = iter(self.captioner.describe([crop.pixels for crop in without]))
        return [next(texts) if crop.prompt is None else crop.prompt for crop in batch]

    def _refuse(self, split: str, uid: str, kind: str, reason: str) -> None:
        self.counts.count(split, "records")
        self.counts.count(split, kind)
        self.refused.append({"image": uid, "split": split, "kind": kind, "reason": reason})


def to_unit(saliency: np.ndarray, side: int, sigma: float) -> np.ndarray | None:
    """A model's map as a ControlNet learns it: at the crop's size, blurred, its least value 0 and its largest 1.

    Args:
      saliency: float [h,w], not negative.
      side: of the crop in pixels.
      sigma: in pixels of a crop of 512.

    Returns:
      float64 [side,side]; None for a map that is the same everywhere.

    Raises:
      NotFinite: NaN or infinity.
    """
    values = np.asarray(saliency, np.float64)
    if not np.isfinite(values).all():
        raise NotFinite("the saliency model predicts values that are not finite (NaN or infinite)")
    largest = values.max()
    if not largest > 0:
        return None
    values = values / largest  # densities over many pixels are small for the float32 of the resizing
    if values.shape != (side, side):
        values = resize(values.astype(np.float32), (side, side)).astype(np.float64)
    values = ndimage.gaussian_filter(values, sigma * side / crops_lib.SIDE)
    low, high = values.min(), values.max()
    # Rounding of the blur is no map.
    return None if high - low <= 1e-6 * high else (values - low) / (high - low)


def _name(captioner: Captioner | None) -> list[str]:
    return [] if captioner is None else [captioner.name]


def _digest(root: pathlib.Path, pictures: Sequence[Picture], options: list[Any]) -> str:
    """Of the inputs: names, captions, sizes and times of all pictures."""
    stamps = []
    for picture in pictures:
        status = os.stat(root / picture.name)
        stamps.append([picture.name, picture.prompt, status.st_size, status.st_mtime_ns])
    return hashlib.sha256(json.dumps([_PLAN_VERSION, stamps, options]).encode()).hexdigest()
