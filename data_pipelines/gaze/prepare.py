"""`rahf prepare saliency`: pictures and where people looked → a dataset with fixations and densities."""

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
from data_pipelines.gaze import density, layouts, views
from data_pipelines.gaze.views import Viewed
from data_pipelines.prepare import splits
from data_pipelines.prepare.counts import PreparationCounts, Refused, print_report, stored_counts, summary_files
from data_pipelines.prepare.dataset_source import NOT_STATED
from data_pipelines.prepare.datasheet import DataSheet
from data_pipelines.prepare.progress import Advance, progress_bars
from data_pipelines.prepare.stored_images import storable
from data_pipelines.store.records import Record
from rahf import images as images_lib
from rahf.core import names, terminal
from rahf.core.batch import SCORES
from rahf.core.errors import DatasetError
from rahf.core.files import read_regular
from rahf.core.names import suggest
from rahf.images.resize import resize

_PLAN_VERSION = 1  # raise it when a change lets the same inputs give other bytes
#: Pixels per degree of visual angle, and standard deviation of the density in degrees, where a layout has its own.
PIXELS_PER_DEGREE = {"osie": 24.0, "mit1003": 35.0, "cat2000": 38.0, "salicon": 19.0}
_MAP_SIDE = 512  # longest side of a ready map as it is stored
_DESCRIPTION = "Where people look in pictures: fixations in pixels of the picture, and their density. Nothing is rated."


@dataclasses.dataclass
class GazeCounts(PreparationCounts):
    """Counts of a preparation.

    Attributes:
      sigma: standard deviation of the densities in pixels; 0: ready maps only.
    """

    title: ClassVar[str] = "saliency"
    refusals: ClassVar[tuple[str, ...]] = (
        "no fixations",
        "x and y exchanged",
        "fixations outside the picture",
        "all-zero map",
        "map of another shape",
        "undecodable",
        "malformed",
    )
    notes: ClassVar[tuple[str, ...]] = (
        "fixations",
        "dropped fixations outside",
        "ready maps",
        "densities of fixations",
        "same picture again",
    )
    sigma: float = 0.0

    def remarks(self) -> list[str]:
        lines = super().remarks()
        if self.sigma:
            lines.append(f"densities are Gaussians of {self.sigma:g} pixels")
        if dropped := self.total("dropped fixations outside"):
            lines.append(f"warning: {dropped} fixations lie outside their picture and were dropped")
        if again := self.total("same picture again"):
            lines.append(f"warning: {again} pictures are the same file as an earlier one")
        return lines


def prepare(
    folder: str | os.PathLike,
    out: str | os.PathLike,
    layout: str = "folder",
    sigma: float | None = None,
    sigma_degrees: float | None = None,
    pixels_per_degree: float | None = None,
    order: str = "xy",
    license: str | None = None,
    dev: float = 0.1,
    test: float = 0.1,
    progress: bool = True,
) -> GazeCounts:
    """Makes a dataset of pictures that people looked at.

    A density is a Gaussian around every fixation, in pixels of the picture. Where a picture has both fixations and a
    ready map, the fixations are kept and the density is made from them. Pictures that cannot be used are counted and
    listed in ``OUT/refused.jsonl``. A finished run with unchanged inputs returns at once.

    Args:
      folder: in the layout's form.
      out: directory to make; a dataset in its place is replaced.
      layout: a name of `data_pipelines.gaze.layouts.LAYOUTS`.
      sigma: standard deviation in pixels; None: by degrees.
      sigma_degrees: the same in degrees of visual angle; None: 1.
      pixels_per_degree: of the study; None: the layout's.
      order: "xy", or "yx" where a file has them exchanged.
      license: of the data, for the data sheet.
      dev, test: shares to hold out by a hash of the picture, where the layout has no split of its own.
      progress: print progress and, at the end, the table.

    Raises:
      DatasetError: an unknown layout, no such folder, contradictory options, or nothing that can be used.
    """
    target = pathlib.Path(os.path.abspath(out))
    store.check_replaceable(target)
    splits.check_shares(dev, test)
    if layout not in layouts.LAYOUTS:
        raise DatasetError(f"--layout {layout!r} is unknown.{suggest(layout, list(layouts.LAYOUTS))}")
    if order not in ("xy", "yx"):
        raise DatasetError(f"--order {order!r}: expected xy or yx")
    pixels = _sigma(layout, sigma, sigma_degrees, pixels_per_degree)
    console = terminal.console(quiet=not progress)
    viewed = layouts.LAYOUTS[layout](pathlib.Path(folder))
    if pixels is None and any(one.fixations is not None for one in viewed):
        raise DatasetError("give --sigma PIXELS, or --pixels-per-degree N: fixations become a density by a Gaussian")
    plan = _digest(pathlib.Path(folder), viewed, [layout, pixels, order, license, dev, test])
    counts = stored_counts(GazeCounts, target, plan)
    if counts is not None:
        console.print(Text(names.one_line(f"{target} is complete and its inputs have not changed")), soft_wrap=True)
    else:
        with progress_bars(console) as advance:
            run = _Run(viewed, pixels or 0.0, order == "yx", (dev, test), advance)
            counts = run.write(pathlib.Path(folder), layout, target, plan, license or NOT_STATED)
    print_report(console, counts, target)
    return counts


def _sigma(layout: str, sigma: float | None, degrees: float | None, per_degree: float | None) -> float | None:
    """Standard deviation in pixels; None: not known. Raises DatasetError."""
    for name, value in (("sigma", sigma), ("sigma-degrees", degrees), ("pixels-per-degree", per_degree)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise DatasetError(f"--{name} {value}: expected a number above 0")
    if sigma is not None:
        if degrees is not None or per_degree is not None:
            raise DatasetError("--sigma is in pixels; give either it, or --sigma-degrees and --pixels-per-degree")
        return sigma
    per_degree = per_degree or PIXELS_PER_DEGREE.get(layout)
    if per_degree is None:
        if degrees is not None:
            raise DatasetError("--sigma-degrees needs --pixels-per-degree N, which this layout does not know")
        return None
    return per_degree * (degrees or 1.0)


class _Run:
    def __init__(
        self,
        viewed: list[Viewed],
        sigma: float,
        exchange: bool,
        shares: tuple[float, float],
        advance: Advance,
    ):
        self.viewed, self.sigma, self.exchange, self.shares, self.advance = viewed, sigma, exchange, shares, advance
        self.counts = GazeCounts(sigma=sigma)
        self.refused: list[dict[str, Any]] = []
        self.digests: set[str] = set()

    def write(self, folder: pathlib.Path, layout: str, target: pathlib.Path, plan: str, license: str) -> GazeCounts:
        """Writes the dataset. Raises DatasetError if nothing can be used."""
        by_split: dict[str, list[Viewed]] = {}
        for one in self.viewed:
            by_split.setdefault(one.split or self._split_of(one.file), []).append(one)
        present = [split for split in splits.SPLITS if split in by_split]
        for split in present:
            self.counts.add_split(split)
        notes = [f"densities are Gaussians of {self.sigma:g} pixels"] if self.sigma else []
        sheet = DataSheet(f"Saliency ({layout})", source=os.fspath(folder), license=license, notes=notes)
        extra = {**summary_files(plan, self.counts, self.refused), **sheet.files(self.counts)}
        records = sheet.watch({split: self._records(split, by_split[split]) for split in present})
        try:
            store.write_dataset(target, records, _DESCRIPTION, None, extra, optional=("fixations", "saliency"))
        except DatasetError as error:
            if self.counts.total("joined"):
                raise
            first = "".join(f"\n  {line['image']}: {line['reason']}" for line in self.refused[:5])
            raise DatasetError(
                f"{folder}: none of its {len(self.viewed)} pictures can be used. First reasons:{first}"
            ) from error
        return self.counts

    def _split_of(self, file: pathlib.Path) -> str:
        """By the picture's bytes, so that the same file under two names stays in one split."""
        return splits.by_hash(hashlib.sha256(read_regular(file)).hexdigest(), *self.shares)

    def _records(self, split: str, viewed: list[Viewed]) -> Iterator[Record]:
        for one in viewed:
            self.counts.count(split, "records")
            try:
                record = self._record(split, one)
            except Refused as why:
                self.counts.count(split, why.kind)
                self.refused.append({"image": one.uid, "split": split, "kind": why.kind, "reason": str(why)})
            else:
                self.counts.count(split, "joined")
                yield record
            self.advance("writing records", self.counts.total("records"), len(self.viewed))

    def _record(self, split: str, one: Viewed) -> Record:
        try:
            data = read_regular(one.file)
            image = storable(data, one.uid)
        except (OSError, images_lib.ImageError) as error:
            raise Refused("undecodable", str(error)) from error
        header = images_lib.check_header(image)
        size = header.height, header.width
        points, saliency, row = None, None, "ready maps"
        if one.fixations is not None:
            checked = views.check(one.fixations(), size, self.exchange)
            points, row = checked.points, "densities of fixations"
            grid = density.stored_grid(size, self.sigma)
            saliency = density.encode(density.gaussian(points, size, self.sigma, grid))
            self.counts.splits[split]["fixations"] += len(points)
            self.counts.splits[split]["dropped fixations outside"] += checked.outside
        elif one.saliency is not None:
            saliency = density.encode(_ready_map(one.saliency, size))
        else:
            raise Refused("no fixations", "the picture has neither fixations nor a map")
        self.counts.count(split, row)
        digest = hashlib.sha256(data).hexdigest()
        if digest in self.digests:
            self.counts.count(split, "same picture again")
        self.digests.add(digest)
        return Record(
            uid=one.uid,
            prompt="",
            words=(),
            word_labels=None,
            image=image,
            implausibility=None,
            misalignment=None,
            scores=np.full(len(SCORES), math.nan, np.float32),
            fixations=points,
            saliency=saliency,
        )


def _ready_map(file: pathlib.Path, size: tuple[int, int]) -> np.ndarray:
    """float64 [h,w], at most `_MAP_SIDE` long. Raises Refused."""
    try:
        grey = images_lib.load_grey(read_regular(file), what=file.name)
    except (OSError, images_lib.ImageError) as error:
        raise Refused("undecodable", str(error)) from error
    views.check_map(grey, size)
    scale = _MAP_SIDE / max(grey.shape)
    if scale >= 1:
        return grey.astype(np.float64)
    shape = tuple(max(1, round(side * scale)) for side in grey.shape)
    return np.maximum(resize(grey.astype(np.float32), shape), 0).astype(np.float64)


def _digest(folder: pathlib.Path, viewed: list[Viewed], options: list[Any]) -> str:
    """Of the inputs: names, sizes and times of all files below the folder that may be read."""
    stamps = []
    for root, _, files in sorted(os.walk(folder)):
        for name in sorted(files):
            status = os.stat(os.path.join(root, name))
            stamps.append([os.path.relpath(os.path.join(root, name), folder), status.st_size, status.st_mtime_ns])
    inputs = [_PLAN_VERSION, [one.uid for one in viewed], stamps, options]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()
