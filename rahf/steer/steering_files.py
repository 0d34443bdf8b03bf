"""`rahf steering`: systems over prompt lists, judged by models that took no part: pictures, tables, box plots, JSON."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import os
import pathlib
import re
import time
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from rich.table import Table
from rich.text import Text

from rahf.core import json_text, names
from rahf.core.errors import ArgumentError
from rahf.core.files import write_atomically
from rahf.core.version import __version__
from rahf.diffusion.pipeline import Pipeline
from rahf.images.decode import load_rgb
from rahf.steer import judges as judges_lib
from rahf.steer import steering_report as report
from rahf.steer import systems as systems_lib
from rahf.steer.generate_files import METADATA, contact_sheet, png
from rahf.steer.judges import Judge
from rahf.steer.steering_report import Column, Results
from rahf.steer.systems import System, SystemOptions
from rahf.text import prompt_lists
from rahf.text.prompt_lists import PromptList

_STARTED, _RESULTS, _TABLE, _SHEET, _BOXES = "options.json", "evaluation.json", "table.md", "contact_sheet.png", "boxes"
#: Between two prompts, if their seeds vary.
SEEDS_APART = 1000
_SHOWN = 40  # prompts on the contact sheet
_SLUG = re.compile(r"[^a-z0-9]+")

#: Gets what is done (the name of a system or judge), how many pictures of it are done, and how many there are.
Progress = Callable[[str, float, int], None]


@dataclasses.dataclass(frozen=True)
class SteeringOptions:
    """What is compared, and by whom.

    Attributes:
      methods: of `rahf.steer.systems.METHODS`, drawn with the model; the first is what the others are compared with.
      models: name and model of further systems.
      guide: model whose energy steers, perhaps with ``:SCORE``.
      judges: models that judge, each perhaps with ``:SCORE,SCORE``. The guide judges, too, and is marked.
      took_part: (system, judge) that the program cannot know of: who chose the pictures that a model was trained on.
      seeds: of every prompt.
      vary_seeds: every prompt has its own noise, `SEEDS_APART` seeds from the next one's. Otherwise all prompts share
        that of a seed, and intervals over prompts do not say how much the noise matters.
      limit: only the first so many prompts of each list.
      category_column: of tables, see `rahf.text.prompt_lists.read`.
      batch_size: pictures at once.
      system: how pictures are drawn.
    """

    methods: tuple[str, ...] = ("plain",)
    models: tuple[tuple[str, Any], ...] = ()
    guide: Any = None
    judges: tuple[Any, ...] = ()
    took_part: tuple[tuple[str, str], ...] = ()
    seeds: tuple[int, ...] = (0,)
    vary_seeds: bool = False
    limit: int | None = None
    category_column: str | None = None
    batch_size: int = 4
    system: SystemOptions = SystemOptions()


class Drawing(NamedTuple):
    """A picture to be drawn."""

    place: pathlib.PurePath  # below the folder of a system
    prompt: str
    seed: int


class Plan(NamedTuple):
    """What there is to do.

    Attributes:
      lists: as they were read.
      prompts: list, category and text of each prompt.
      drawings: a row per prompt, a column per seed.
      systems, judges, guide: loaded.
      columns: scores, held-out ones first.
      missing: system → drawings that are not on disk with the same parameters.
    """

    lists: tuple[PromptList, ...]
    prompts: tuple[tuple[str, str, str], ...]
    drawings: tuple[tuple[Drawing, ...], ...]
    systems: tuple[System, ...]
    judges: tuple[Judge, ...]
    columns: tuple[Column, ...]
    missing: dict[str, list[Drawing]]

    @property
    def refused(self) -> int:
        """Lines of lists that are not read."""
        return sum(len(one.refused) for one in self.lists)

    @property
    def samplings(self) -> float:
        """What is still to be drawn, in samplings without steering."""
        return sum(system.samplings * len(self.missing[system.name]) for system in self.systems)


def plan(
    model: str | os.PathLike | Pipeline,
    files: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    options: SteeringOptions = SteeringOptions(),
) -> Plan:
    """Reads lists, loads models, and looks what is drawn already; draws and writes nothing.

    Raises:
      ArgumentError: a list that cannot be read, names that occur twice, no judge, a folder that holds something else.
      CheckpointError, ExportError: a model cannot be read.
    """
    folder = pathlib.Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir()) and not (folder / _STARTED).is_file()):
        raise ArgumentError(f"{folder}: exists already and holds no {_STARTED} of this command; choose another folder")
    _check(files, options)
    lists = tuple(prompt_lists.read(file, options.category_column) for file in files)
    if len({one.name for one in lists}) < len(lists):
        raise ArgumentError(f"prompts: two lists are called {lists[0].name!r}; rename a file")
    prompts, drawings = [], []
    for listed in lists:
        for one in listed.prompts[: options.limit]:
            prompts.append((listed.name, one.category, one.prompt))
            stem, apart = f"{one.number:04d}-{slug(one.prompt)}", one.number * SEEDS_APART * options.vary_seeds
            seeds = [(int(seed) + apart) % 2**32 for seed in options.seeds]
            places = [pathlib.PurePath(slug(listed.name), f"{stem}-seed{seed}.png") for seed in seeds]
            drawings.append(tuple(Drawing(place, one.prompt, seed) for place, seed in zip(places, seeds)))
    guide, guiding = (None, None) if options.guide is None else judges_lib.guide(options.guide)
    judges = judges_lib.judges([*options.judges, *([] if guiding is None else [guiding])])
    systems = systems_lib.systems(model, options.methods, options.models, guide, options.system)
    columns = _columns(judges, systems, options.took_part)
    missing = {
        system.name: [one for row in drawings for one in row if not is_drawn(folder / system.name, one, system)]
        for system in systems
    }
    return Plan(lists, tuple(prompts), tuple(drawings), tuple(systems), tuple(judges), columns, missing)


def _check(files: Sequence[Any], options: SteeringOptions) -> None:
    if not files or not options.seeds or not options.methods:
        raise ArgumentError("steering: expected at least one list of prompts, one seed and one system")
    if len(set(options.seeds)) < len(options.seeds):
        raise ArgumentError(f"seeds: expected different ones, found {list(options.seeds)}")
    if not options.judges and options.guide is None:
        raise ArgumentError("judges: expected at least one model that scores pictures")
    for name, value in (("batch_size", options.batch_size), ("limit", options.limit)):
        if value is not None and value < 1:
            raise ArgumentError(f"{name}: expected at least 1, found {value}")


def _columns(
    judges: Sequence[Judge], systems: Sequence[System], declared: Sequence[tuple[str, str]]
) -> tuple[Column, ...]:
    """Held-out judges first, each in the order of the user."""
    system_names = [system.name for system in systems]
    for system, place in declared:
        if system not in system_names:
            raise ArgumentError(f"took_part: no system {system!r}.{names.suggest(system, system_names)}")
        if place not in [name for judge in judges for name in (judge.path, judge.name)]:
            raise ArgumentError(f"took_part: {place} is none of the judges; give it to --judges, too")
    columns = []
    for judge in judges:
        roles = {system.name: role for system in systems for role in [_role(judge, system)] if role}
        roles |= {system: "declared" for system, place in declared if place in (judge.path, judge.name)}
        columns += [Column(f"{judge.name} {score}", judge.model_id, score, roles) for score in judge.scores]
    return tuple(sorted(columns, key=lambda column: bool(column.took_part)))


def _role(judge: Judge, system: System) -> str | None:
    return system.took_part.get(judge.model_id, system.took_part.get(judge.path))


def slug(text: str, most: int = 40) -> str:
    """Lower-case letters and digits of a text, words joined by hyphens: a part of a file's name."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return _SLUG.sub("-", plain).strip("-")[:most].strip("-") or "prompt"


def is_drawn(folder: pathlib.Path, drawing: Drawing, system: System) -> bool:
    """Whether a picture is on disk that was drawn with the same parameters."""
    path = folder / drawing.place
    if not path.is_file():
        return False
    try:
        with Image.open(path) as image:
            stored = json_text.parse_object(image.text[METADATA])  # pyright: ignore
            image.load()  # the whole file
    except (OSError, ValueError, SyntaxError, KeyError, AttributeError):
        return False
    # Where a model lies does not matter, its id does.
    ignored = ("rahf", "model")
    same = lambda tree: {name: value for name, value in tree.items() if name not in ignored}  # noqa: E731
    return same(stored) == same(_metadata(system, drawing))


def _metadata(system: System, drawing: Drawing) -> dict[str, Any]:
    return {"prompt": drawing.prompt, "seed": drawing.seed, **plain_json(system.parameters)}


def plain_json(tree: Any) -> Any:
    """A tree of dicts, tuples and numbers as JSON has it: lists, and None for numbers that are not finite."""
    if isinstance(tree, dict):
        return {str(name): plain_json(value) for name, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [plain_json(value) for value in tree]
    if isinstance(tree, (bool, str)) or tree is None:
        return tree
    if isinstance(tree, (int, np.integer)):
        return int(tree)
    return float(tree) if math.isfinite(tree) else None


def steering_files(
    model: str | os.PathLike | Pipeline,
    files: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    options: SteeringOptions = SteeringOptions(),
    progress: Progress | None = None,
    work: Plan | None = None,
) -> tuple[Plan, Results]:
    """Draws every prompt with every seed by every system, judges all pictures, and reports.

    Writes ``out/SYSTEM/LIST/0000-a-red-cat-seed0.png``, …, ``out/evaluation.json`` (all scores, the summary),
    ``out/table.md``, ``out/boxes/SCORE.png``, ``out/contact_sheet.png``. A picture that is there with the same
    parameters is not drawn again: an interrupted call goes on where it was, and prompts, seeds, systems and judges may
    be added.

    Args:
      model: model directory or run of Stable Diffusion, or a pipeline.
      files: lists of prompts, see `rahf.text.prompt_lists`.
      out: folder; must not exist, be empty, or be one of this command.
      options: what is compared.
      progress: see `Progress`.
      work: of `plan` with the same arguments; None: made here.

    Raises:
      ArgumentError, CheckpointError, ExportError: as `plan`.
      NotFinite: an energy, a gradient or a latent is not finite.
    """
    work = plan(model, files, out, options) if work is None else work
    folder = pathlib.Path(out)
    meta = _meta(work, files, options)
    write_atomically(folder / _STARTED, json.dumps(meta, indent=2) + "\n")
    seconds = {system.name: _draw(work, system, folder, options.batch_size, progress) for system in work.systems}
    scores = _measure(work, folder, options.batch_size, progress)
    prompts, seeds = len(work.prompts), len(options.seeds)
    means = {name: values.reshape(prompts, seeds, -1).mean(1) for name, values in scores.items()}
    notes = [f"{system.name}: {note}" for system in work.systems for note in system.notes]
    notes += [f"{one.name}: {len(one.refused)} lines refused; {one.refused[0]}" for one in work.lists if one.refused]
    groups = report.groups_of([(listed, category) for listed, category, _ in work.prompts])
    system_names = tuple(system.name for system in work.systems)
    results = Results(system_names, work.columns, means, groups, seeds, tuple(notes))
    numbers = report.summary(results)
    tree = {"meta": meta | {"seconds": seconds}, "summary": numbers, "pictures": _rows(work, scores)}
    write_atomically(folder / _RESULTS, json.dumps(plain_json(tree), indent=1) + "\n")
    write_atomically(folder / _TABLE, report.markdown(results, numbers))
    for name, picture in report.plots(results).items():
        write_atomically(folder / _BOXES / f"{slug(name, 60)}.png", png(picture))
    write_atomically(folder / _SHEET, png(_sheet(work, folder)))
    return work, results


def _draw(work: Plan, system: System, folder: pathlib.Path, batch_size: int, progress: Progress | None) -> float:
    """Draws what is missing of a system; the seconds that it took. A picture is written as soon as its batch is."""
    missing, total = work.missing[system.name], sum(len(row) for row in work.drawings)
    began, done = time.perf_counter(), total - len(missing)
    size = min(batch_size, len(missing))
    for first in range(0, len(missing), size or 1):
        batch = missing[first : first + size]
        # Equal batches: a smaller one would compile anew.
        full = [*batch, *[batch[-1]] * (size - len(batch))]

        def share(of_batch: float, done: int = done, count: int = len(batch)) -> None:
            if progress is not None:
                progress(system.name, done + of_batch * count, total)

        images = system.draw([one.prompt for one in full], [one.seed for one in full], share)
        for drawing, image in zip(batch, images):
            metadata = _metadata(system, drawing) | {"rahf": __version__}
            write_atomically(folder / system.name / drawing.place, png(image, metadata))
        done += len(batch)
        share(0.0, done)
    if progress is not None:
        progress(system.name, total, total)
    return round(time.perf_counter() - began, 1)


def _measure(work: Plan, folder: pathlib.Path, batch_size: int, progress: Progress | None) -> dict[str, np.ndarray]:
    """System → scores float64 [pictures, columns], in the order of `Plan.columns`."""
    flat = [one for row in work.drawings for one in row]
    prompts, order = [one.prompt for one in flat], [column.name for column in work.columns]
    scores = {system.name: np.empty((len(flat), len(order))) for system in work.systems}
    for judge in work.judges:
        done, total = 0, len(flat) * len(work.systems)

        def count(pictures: int, judge: Judge = judge, total: int = total) -> None:
            nonlocal done
            done += pictures
            if progress is not None:
                progress(f"judge {judge.name}", done, total)

        columns = [order.index(name) for name in judge.columns]
        for system in work.systems:
            places = [folder / system.name / one.place for one in flat]
            scores[system.name][:, columns] = judges_lib.measure_files(judge, places, prompts, batch_size, count)
    return scores


def _rows(work: Plan, scores: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """A row per picture: where it is, what it shows, its scores."""
    rows = []
    for system in work.systems:
        values = iter(scores[system.name])
        for (listed, category, prompt), drawings in zip(work.prompts, work.drawings):
            for drawing in drawings:
                by_name = dict(zip([column.name for column in work.columns], np.round(next(values), 6).tolist()))
                picture = f"{system.name}/{drawing.place.as_posix()}"
                row = {"system": system.name, "list": listed, "category": category, "prompt": prompt}
                rows.append(row | {"seed": drawing.seed, "picture": picture, "scores": by_name})
    return rows


def _sheet(work: Plan, folder: pathlib.Path) -> np.ndarray:
    """Prompts spread evenly over the lists, the first seed of each, a column per system."""
    count = len(work.prompts)
    shown = np.unique(np.linspace(0, count - 1, min(count, _SHOWN)).astype(int))
    pictures = [load_rgb(folder / s.name / work.drawings[row][0].place) for row in shown for s in work.systems]
    texts = [work.prompts[row][2] for row in shown]
    return contact_sheet(pictures, texts, len(work.systems), [system.name for system in work.systems])


def _meta(work: Plan, files: Sequence[Any], options: SteeringOptions) -> dict[str, Any]:
    return plain_json(
        {
            "systems": {
                system.name: system.parameters | {"took_part": system.took_part, "samplings": system.samplings}
                for system in work.systems
            },
            "judges": {judge.name: {"model_id": judge.model_id, "scores": judge.scores} for judge in work.judges},
            "columns": [column._asdict() for column in work.columns],
            "lists": {
                one.name: {
                    "file": os.fspath(file),
                    "layout": one.layout,
                    "prompts": len(one.prompts),
                    "categories": one.categories,
                    "columns that are not read": one.unread,
                    "refused": one.refused,
                }
                for one, file in zip(work.lists, files)
            },
            "seeds": options.seeds,
            "vary_seeds": options.vary_seeds,
            "limit": options.limit,
            "batch_size": options.batch_size,
            "rahf": __version__,
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        }
    )


def describe(work: Plan) -> list[str]:
    """What there is to do, a line each."""
    lines = []
    for one in work.lists:
        unread = f"; columns that are not read: {', '.join(one.unread)}" if one.unread else ""
        refused = f"; {len(one.refused)} lines refused, the first: {one.refused[0]}" if one.refused else ""
        count = f"{len(one.prompts)} prompts, {len(one.categories)} categories"
        lines.append(f"{one.name}: {one.layout}, {count}{unread}{refused}")
    count = sum(len(row) for row in work.drawings)
    for system in work.systems:
        missing = len(work.missing[system.name])
        cost = f", each about {system.samplings:g} samplings without steering" if missing else ""
        lines.append(f"{system.name}: {missing} of {count} pictures to draw{cost}")
        lines += [f"{system.name}: {note}" for note in system.notes]
    held_out = [column.name for column in work.columns if not column.took_part]
    lines.append(f"held-out judges: {', '.join(held_out) or 'none; add one with --judges'}")
    for column in work.columns:
        if column.took_part:
            lines.append(f"{column.name}: took part in {', '.join(column.took_part)}")
    lines.append(
        f"to do: about {work.samplings:g} samplings without steering, and {len(work.columns)} scores a picture"
    )
    return lines


def table(results: Results) -> Table:
    """Scores of all prompts: a row per score, held-out ones first, a column per system."""
    numbers = report.summary(results._replace(groups={report.OVERALL: results.groups[report.OVERALL]}))[report.OVERALL]
    rendered = Table(
        title=Text(f"{len(results.groups[report.OVERALL])} prompts, {results.seeds} seeds"), show_lines=True
    )
    rendered.add_column("")
    for system in results.systems:
        rendered.add_column(Text(system), justify="right")
    for column in results.columns:
        cells = []
        for system in results.systems:
            values = numbers[column.name][system]
            mark = " †" if system in column.took_part else ""
            cell = f"{values['mean']:.4f}{mark}"
            if "difference" in values:
                low, high = values["difference_interval"]
                cell += f"\n{values['difference']:+.4f}"
                cell += f"\n{low:+.4f} to {high:+.4f}" if math.isfinite(low) else ""
            cells.append(Text(cell))
        rendered.add_row(Text(f"{column.name}\n{'took part' if column.took_part else 'held out'}"), *cells)
    if not results.held_out:
        rendered.caption = Text("no held-out judge: nothing here shows that pictures are better")
    return rendered
