"""The work behind `rahf report`: reads sources, measures, collects what the page shows, writes it."""

from __future__ import annotations

import datetime
import os
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.text import Text

from data_pipelines import store
from data_pipelines.loading.labels import Labels, Truth
from rahf.comparison import measure
from rahf.comparison.predictions import Predicted
from rahf.comparison.report.items import (
    Item,
    Kept,
    SideData,
    disagreement,
    reduced_map,
    reduced_picture,
    side_of,
)
from rahf.comparison.report.page import MAX_SOURCES, ReportData, write_page
from rahf.comparison.report.pictures import PictureRecord, Pictures, PictureSource, read_pictures
from rahf.comparison.run import notes, progress
from rahf.comparison.sources import FileSource, ModelSource, open_sources
from rahf.core import names, terminal
from rahf.core.batch import HEATMAPS, SCORES
from rahf.core.errors import ArgumentError
from rahf.core.files import check_writable
from rahf.core.version import __version__
from rahf.text.words import same_prompt

_MIN_BYTES = 500_000


class Written(NamedTuple):
    """What a report was made of."""

    path: pathlib.Path
    count: int  # examples or pictures
    refused: int  # lines and pictures that could not be used


def report(
    sources: Sequence[str],
    *,
    out: str | os.PathLike,
    data: str | None = None,
    split: str = "test",
    images: Sequence[str] = (),
    predictions: Sequence[str] = (),
    images_from: Sequence[str] = (),
    title: str | None = None,
    limit: int | None = None,
    examples: int = 200,
    max_bytes: int = 20_000_000,
    resamples: int = 1000,
    console: Console | None = None,
) -> Written:
    """Writes one HTML file that compares models on a data set or on pictures, or generators under one model.

    Args:
      sources: models as of `rahf.load`, or predictions files (.jsonl).
      out: the HTML file.
      data: prepared dataset, whose labels the sources are measured by.
      split: of it.
      images: folders (or JSONL files) of pictures with prompts instead of `data`. One: sources side by side on these
        pictures. Several: one model, and the folders are generators, paired by prompt.
      predictions: predictions files, whatever their names.
      images_from: further folders in which the pictures of a JSONL file may lie.
      title: heading; None: made of the names.
      limit: only the first so many examples, or prompts.
      examples: size of the gallery.
      max_bytes: largest size of the file. Pictures get coarser to fit it, then examples are left out.
      resamples: of the bootstrap.
      console: for what was written and what a reader must know.

    Raises:
      ArgumentError: neither data nor images, or both; too many sources; a folder that cannot be written to.
      DataError, DatasetError, ScoreError, CheckpointError, ExportError: something cannot be read.
    """
    console = console or terminal.console()
    out = pathlib.Path(out)
    if out.is_dir():
        raise ArgumentError(f"{out} is a folder; give a file: --out {out / 'report.html'}")
    if (data is None) == (not images):
        raise ArgumentError("give either --data DIR, whose labels are compared with, or --images DIR …")
    if examples < 0 or max_bytes < _MIN_BYTES:
        raise ArgumentError(f"examples {examples}, at most {max_bytes} bytes: expected at least 0 and {_MIN_BYTES:,}")
    if max(len(sources) + len(predictions), len(images)) > MAX_SOURCES:
        raise ArgumentError(f"at most {MAX_SOURCES} can be told apart in one report; make several")
    if len(images) > 1 and len(sources) + len(predictions) != 1:
        raise ArgumentError("several folders of pictures are compared under one model: give one MODEL and --images A B")
    check_writable(out.absolute().parent, "give another file with --out FILE")
    folders = [read_pictures(place, images_from) for place in images]
    opened = open_sources(sources, predictions)
    options = {"limit": limit, "examples": examples, "resamples": resamples}
    if len(folders) > 1:
        page = _generators(opened[0], folders, **options)
    else:
        labels = Labels(PictureSource(folders[0].records) if folders else store.open_split(data, split))
        place = folders[0].place if folders else f"{data}, split {split}"
        page = _models(opened, labels, place, bool(folders), **options)
    refused = [line for folder in folders for line in folder.refused]
    if refused:
        page.notes.append(f"{len(refused)} pictures refused; {refused[0]}")
    page.meta.update(_meta())
    page.title = title or page.title
    shown = write_page(out, page, max_bytes)
    for note in page.notes:
        console.print(Text(names.one_line(f"note: {note}")), soft_wrap=True)
    size = out.stat().st_size / 1e6
    line = f"{page.count} {page.what}, {shown} in the gallery, {size:.1f} MB: {out}"
    console.print(Text(names.one_line(line)), soft_wrap=True)
    return Written(out, page.count, len(refused) + sum(len(one.refused) for one in opened))


def _meta() -> dict[str, str]:
    return {
        "command": names.one_line(shlex.join(["rahf", *sys.argv[1:]]), 2000),
        "version": f"rahf {__version__}",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _models(
    sources: Sequence[ModelSource | FileSource],
    labels: Labels,
    place: str,
    unlabelled: bool,
    *,
    limit: int | None,
    examples: int,
    resamples: int,
) -> ReportData:
    """Sources on the same examples."""
    kept, prompts, rated, predicted_scores = Kept(examples), [], [], []

    def collect(position: int, truth: Truth, predictions: Sequence[Predicted]) -> None:
        record = truth.record
        prompts.append(same_prompt(record.prompt))
        rated.append(np.asarray(record.scores, np.float32))
        predicted_scores.append(np.stack([one.scores for one in predictions]))
        sides: list[SideData | None] = [side_of(one) for one in predictions]
        if not unlabelled:
            sides.append(_people(truth))
        measures = _measures(sides, unlabelled)
        kept.offer(
            measures["disagreement, scores"],
            lambda: Item(
                record.uid, record.prompt, record.words, [reduced_picture(truth.image())], sides, measures, position
            ),
        )

    comparison = measure.compare(
        sources,
        labels,
        limit=limit,
        resamples=1 if unlabelled else resamples,
        each=collect,
        progress=progress("reporting"),
    )
    scores = np.stack(predicted_scores)  # [N,S,4]
    name = pathlib.PurePath(place.split(", split")[0]).name
    return ReportData(
        title=f"{' and '.join(one.name for one in sources)} on {name}",
        kind="pictures" if unlabelled else "models",
        what="pictures" if unlabelled else "examples",
        names=[one.name for one in sources],
        about=[one.about for one in sources],
        scores=[scores[:, i] for i in range(len(sources))],
        prompts=[prompts] * len(sources),
        rated=None if unlabelled else np.stack(rated),
        comparison=None if unlabelled else comparison,
        items=kept.items(),
        count=comparison.count,
        notes=notes(comparison, sources),
        meta={"data": place, "examples": f"{comparison.count} of {comparison.total}"},
        resamples=resamples,
    )


def _people(truth: Truth) -> SideData:
    record = truth.record
    maps = tuple(
        reduced_map(truth.heatmaps[:, :, kind]) if truth.heatmap_mask[kind] else None for kind in range(len(HEATMAPS))
    )
    labels = None if record.word_labels is None else tuple(int(label) for label in record.word_labels)
    return SideData(np.asarray(record.scores, np.float32), maps, labels, 0)


def _measures(sides: Sequence[SideData | None], unlabelled: bool) -> dict[str, float]:
    """By what the items can be ordered: how far the models are apart, and how far each one is from people."""
    models = list(sides) if unlabelled else list(sides[:-1])
    apart = models if len(models) > 1 else list(sides)
    measures = {f"disagreement, {kind}": value for kind, value in disagreement(apart).items()}
    if not unlabelled:
        for number, side in enumerate(models):
            for kind, value in disagreement([side, sides[-1]]).items():
                measures[f"{number}:{kind}"] = value
    for column, name in enumerate(SCORES):
        present = [side.scores[column] for side in models[:1] if side is not None]
        measures[f"score:{name}"] = float(present[0]) if present else float("nan")
    return measures


def _generators(
    source: ModelSource | FileSource,
    folders: Sequence[Pictures],
    *,
    limit: int | None,
    examples: int,
    resamples: int,
) -> ReportData:
    """Folders of pictures under one model, paired by prompt."""
    if not isinstance(source, ModelSource):
        raise ArgumentError(
            "generators are compared under a model that sees their pictures; give a model, not predictions"
        )
    by_group: list[dict[str, list[PictureRecord]]] = []
    for folder in folders:
        groups: dict[str, list[PictureRecord]] = {}
        for record in folder.records:
            groups.setdefault(record.group, []).append(record)
        by_group.append(groups)
    every = dict.fromkeys(group for groups in by_group for group in groups)
    shared = [group for group in every if sum(group in groups for groups in by_group) > 1][:limit]
    if not shared:
        raise ArgumentError(
            "no prompt occurs in two of the folders, so nothing is paired; give folders of pictures of the same prompts"
        )
    ordered = [
        (group, i, one) for group in shared for i, groups in enumerate(by_group) for one in groups.get(group, [])
    ]
    labels = Labels(PictureSource([one for _, _, one in ordered]))
    stream = source.predict(labels, range(len(ordered)))
    side_names = _folder_names(folders)
    scores: list[list[np.ndarray]] = [[] for _ in folders]
    prompts: list[list[str]] = [[] for _ in folders]
    kept = Kept(examples)
    place = 0
    for number, group in enumerate(progress("reporting")(shared)):
        members: list[tuple[int, int, Predicted]] = []
        while place < len(ordered) and ordered[place][0] == group:
            side = ordered[place][1]
            predicted = next(stream)
            scores[side].append(np.asarray(predicted.scores))
            prompts[side].append(group)
            members.append((side, place, predicted))
            place += 1
        _offer(kept, number, members, ordered, labels, len(folders))
    left_out = len(every) - len(shared)
    lines = [f"{left_out} prompts are left out: only one folder has them, or there is a limit"] if left_out else []
    return ReportData(
        title=f"{' and '.join(side_names)} under {source.name}",
        kind="generators",
        what="prompts",
        names=side_names,
        about=[folder.place for folder in folders],
        scores=[np.stack(one) if one else np.zeros((0, len(SCORES)), np.float32) for one in scores],
        prompts=prompts,
        rated=None,
        comparison=None,
        items=kept.items(),
        count=len(shared),
        notes=[*source.notes, *lines],
        meta={"model": source.about, "pictures": ", ".join(str(len(one)) for one in scores)},
        resamples=resamples,
    )


def _offer(kept: Kept, number: int, members: Any, ordered: Any, labels: Labels, count: int) -> None:
    """One item per prompt: the first picture of each folder."""
    first: dict[int, tuple[int, Predicted]] = {}
    for side, place, predicted in members:
        first.setdefault(side, (place, predicted))
    sides: list[SideData | None] = [None] * count
    for picture, side in enumerate(sorted(first)):
        sides[side] = side_of(first[side][1], picture)
    measures = {f"disagreement, {k}": v for k, v in disagreement(sides).items() if k == "scores"}
    for side in sorted(first):
        measures |= {f"{side}:{name}": float(first[side][1].scores[i]) for i, name in enumerate(SCORES)}

    def make() -> Item:
        truths = [labels[first[side][0]] for side in sorted(first)]
        record = truths[0].record
        pictures = [reduced_picture(truth.image()) for truth in truths]
        return Item(str(number + 1), record.prompt, record.words, pictures, sides, measures, number)

    kept.offer(measures["disagreement, scores"], make)


def _folder_names(folders: Sequence[Pictures]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    parts = [pathlib.PurePath(os.path.normpath(folder.place)).parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        short = ["/".join(one[-length:]) for one in parts]
        if len(set(short)) == len(short):
            return [names.one_line(one, 60) for one in short]
    return [f"{names.one_line(parts[i][-1], 50)} ({i + 1})" for i in range(len(parts))]
