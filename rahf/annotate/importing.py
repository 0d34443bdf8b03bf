"""Pictures and prompts → rows of the database. Only names are stored; pictures stay where they are.

Prompts come from a feedback file (lines with ``image`` and ``prompt``, docs/data.md), from a captions file (JSON lines,
CSV, TSV or parquet with ``uid`` or ``filename`` and ``caption`` or ``prompt``), or from the text file beside each
picture. Nothing is fetched: a URL in a file is a name that no file has.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import os
import pathlib
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from data_pipelines.feedback import lines
from data_pipelines.feedback.folder import Folder
from data_pipelines.planted import pictures as pictures_lib
from data_pipelines.prepare.counts import Refused
from rahf import images
from rahf.annotate import answers, tables
from rahf.annotate.database import Database, put_setting
from rahf.core import json_text
from rahf.core.errors import AnnotateError
from rahf.core.names import one_line
from rahf.text import split_words

_BATCH = 500  # pictures that one transaction stores
_LONGEST_PROMPT = 20_000
_MOST_WORDS = 2_000


class Item(NamedTuple):
    """A picture to be shown with a prompt."""

    uid: str
    name: str  # path below the folder
    prompt: str


@dataclasses.dataclass
class Imported:
    """Counts of an import: new pictures, those that were there, and one line for each that was refused."""

    new: int = 0
    already: int = 0
    refused: list[str] = dataclasses.field(default_factory=list)


def import_pictures(
    database: Database,
    folder: str | os.PathLike,
    prompts: str | os.PathLike | None = None,
    purpose: str = "work",
    seed: int = 0,
) -> Imported:
    """Adds the pictures of a folder. Those that are there already stay as they are, so this may be repeated.

    Only a picture at work that nobody has seen becomes a training or gold picture where its uid is given as one.

    Args:
      database: of the project.
      folder: of pictures; stored, and the same in later calls.
      prompts: feedback or captions file; None: captions in the folder or text files beside the pictures.
      purpose: "work", or "training" or "gold", for which each line of a feedback file must hold exactly one annotator
        with the complete right answer, and may hold an ``explanation``.
      seed: of the order in which pictures are shown.

    Returns:
      The counts.

    Raises:
      AnnotateError: no usable folder or file, or another folder than the stored one.
      DatasetError: the prompts file cannot be read.
    """
    if purpose not in tables.PURPOSES:
        raise AnnotateError(f"purpose {purpose!r:.40}, expected {', '.join(tables.PURPOSES)}")
    source = Folder(folder)
    stored = database.setting("folder")
    if stored is not None and os.path.realpath(stored) != source.root:
        raise AnnotateError(f"--images {folder}: the pictures of this database are in {stored}; give that folder")
    imported = Imported()
    wanted = database.project.people_per_picture
    order = random.Random(seed)
    rows: list[dict[str, Any]] = []
    with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        for batch in _batches(_lines(source, folder, prompts, imported, purpose), _BATCH):
            known = _known(database, [item.uid for item, _ in batch])
            usable = {uid for uid, stored in known.items() if purpose != "work" and stored != purpose}
            new = {item.uid: (item, tree) for item, tree in batch if item.uid not in known or item.uid in usable}
            imported.already += len(batch) - len(new)
            described = pool.map(lambda pair: _describe(source, *pair), new.values())
            rows = []
            for row in described:
                if isinstance(row, str):
                    imported.refused.append(row)
                else:
                    rows.append({**row, "purpose": purpose, "wanted": wanted, "position": order.random()})
            if rows:
                with database.write() as connection:
                    put_setting(connection, "folder", source.root)  # with the first pictures: a mistake binds nobody
                    _store(connection, rows, known, imported)
    return imported


def check_sources(folder: str | os.PathLike, file: str | os.PathLike | None, option: str = "--prompts") -> None:
    """Checks that folder and file are there, so that a mistake makes no database; `option` names the file.

    Raises:
      DatasetError: no such folder.
      AnnotateError: no such file.
    """
    Folder(folder)
    if file is not None and not pathlib.Path(file).is_file():
        state = "is no file" if pathlib.Path(file).exists() else "does not exist"
        raise AnnotateError(f"{option} {file} {state}; expected a file with a line for each picture")


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _known(database: Database, uids: list[str]) -> dict[str, str]:
    """Purposes of the pictures that are there, by uid."""
    columns = (tables.pictures.c.uid, tables.pictures.c.purpose)
    with database.read() as connection:
        rows = connection.execute(sa.select(*columns).where(tables.pictures.c.uid.in_(uids)))
        return {uid: purpose for uid, purpose in rows}


def _store(connection: Connection, rows: list[dict[str, Any]], known: Mapping[str, str], imported: Imported) -> None:
    """Adds pictures; one at work that nobody has seen becomes a training or gold picture."""
    fresh = [row for row in rows if row["uid"] not in known]
    if fresh:
        connection.execute(sa.insert(tables.pictures), fresh)
    imported.new += len(fresh)
    changed = ("purpose", "answer", "explanation")
    for row in (row for row in rows if row["uid"] in known):
        pictures = tables.pictures.c
        seen = sa.select(tables.assignments.c.id).where(tables.assignments.c.picture_id == pictures.id).exists()
        change = sa.update(tables.pictures).where(pictures.uid == row["uid"], pictures.purpose == "work", ~seen)
        if connection.execute(change.values({name: row[name] for name in changed})).rowcount:
            imported.new += 1
        else:
            what = f"{one_line(row['uid'], 100)}: it is a {known[row['uid']]} picture already"
            imported.refused.append(f"{what}; give it another uid here, or take one that nobody has seen")


def _lines(
    source: Folder, folder: str | os.PathLike, prompts: str | os.PathLike | None, imported: Imported, purpose: str
) -> Iterator[tuple[Item, dict[str, Any] | None]]:
    """Every picture with its prompt and, where the purpose asks for one, the line with its answer."""
    if prompts is not None and _is_feedback(pathlib.Path(prompts)):
        yield from _feedback_lines(source, pathlib.Path(prompts), imported, purpose)
        return
    if purpose != "work":
        raise AnnotateError(
            f"{purpose} pictures need their answers: give a feedback file (JSONL) with an annotator each"
        )
    listed, problems = pictures_lib.find(folder, prompts)
    imported.refused.extend(problems)
    for picture in listed:
        if picture.prompt is None:
            imported.refused.append(f"{one_line(picture.name, 100)}: no prompt")
        else:
            yield Item(picture.name, picture.name, picture.prompt), None


def _is_feedback(path: pathlib.Path) -> bool:
    """Whether the first line has the field `image`, or a prompt beside annotators: else it is a captions file."""
    if path.suffix.lower() != ".jsonl" or not path.is_file():
        return False
    with open(path, "rb") as file:
        for _, _, raw in lines.read(file):
            try:
                tree = json_text.parse_object(raw.removeprefix(b"\xef\xbb\xbf").decode())
            except ValueError:
                return False
            return "image" in tree or "annotators" in tree
    return False


def _feedback_lines(
    source: Folder, path: pathlib.Path, imported: Imported, purpose: str
) -> Iterator[tuple[Item, dict[str, Any] | None]]:
    with lines.open_file(path) as file:
        for number, _, raw in lines.read(file):
            try:
                line = lines.parse(raw)
                item = Item(line.uid, line.image or source.picture_of(line.uid), line.prompt)
            except Refused as why:
                imported.refused.append(f"{path.name}, line {number}: {one_line(why, 200)}")
                continue
            yield item, (None if purpose == "work" else dict(line.tree))


def _describe(source: Folder, item: Item, tree: dict[str, Any] | None) -> dict[str, Any] | str:
    """The row of a picture, or why it is refused."""
    what = one_line(item.name, 100)
    try:
        if len(item.prompt) > _LONGEST_PROMPT or not 1 <= answers.count_words(item.prompt) <= _MOST_WORDS:
            return f"{what}: the prompt has no word, or too many"
        if len(item.uid) > 1000:
            return f"{what}: the uid is too long"
        data = source.read(item.name, "image")
        pixels = images.load_rgb(data, what=what)
    except (Refused, images.ImageError) as why:
        return f"{what}: {one_line(why, 200)}"
    height, width = pixels.shape[:2]
    row = {
        "uid": item.uid,
        "name": item.name,
        "prompt": item.prompt,
        "width": width,
        "height": height,
        "digest": hashlib.sha256(data).hexdigest(),
        "answer": None,
        "explanation": None,
    }
    if tree is None:
        return row
    annotators = tree.get("annotators")
    try:
        if not isinstance(annotators, list) or len(annotators) != 1:
            raise answers.BadAnswer("expected exactly one annotator, whose answer is the right one")
        checked = answers.check(annotators[0], len(split_words(item.prompt)), width, height, complete=True)
    except answers.BadAnswer as why:
        return f"{what}: {one_line(why, 200)}"
    explanation = tree.get("explanation")
    return {**row, "answer": answers.dumps(checked), "explanation": str(explanation)[:2000] if explanation else None}


def purposes(connection: Connection) -> dict[str, int]:
    """Number of pictures by purpose."""
    columns = sa.select(tables.pictures.c.purpose, sa.func.count()).group_by(tables.pictures.c.purpose)
    return {purpose: count for purpose, count in connection.execute(columns)}
