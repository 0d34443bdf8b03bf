"""Answers of a feedback file → answers of the project, such as those of another database or of Label Studio."""

from __future__ import annotations

import os
import pathlib
import secrets
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from data_pipelines.feedback import lines
from data_pipelines.prepare.counts import Refused
from rahf.annotate import answers as answers_lib
from rahf.annotate import saving
from rahf.annotate.database import Database
from rahf.annotate.importing import Imported
from rahf.annotate.tables import answers, assignments, people, pictures
from rahf.core.names import one_line


def import_answers(database: Database, path: str | os.PathLike) -> Imported:
    """Adds the complete answers in a feedback file to pictures that the project has, found by uid.

    The people are new ones who cannot come in, one for each name in ``raters``, or for each position in ``annotators``.
    Importing the same file again changes nothing.

    Args:
      database: of the project.
      path: JSONL file in the form of `rahf.annotate.exporting`.

    Raises:
      DatasetError: no such file.
    """
    imported, path = Imported(), pathlib.Path(path)
    with lines.open_file(path) as file:
        for number, _, raw in lines.read(file):
            where = f"{path.name}, line {number}"
            try:
                line = lines.parse(raw)
                if line.tree.get("adjudicated"):
                    raise Refused("malformed", "a decision of an administrator is no answer of a person")
            except Refused as why:
                imported.refused.append(f"{where}: {one_line(why, 200)}")
                continue
            with database.write() as connection:
                _add_line(connection, database.clock(), line.uid, line.tree, where, imported)
    return imported


def _add_line(connection: Connection, now: float, uid: str, tree: Any, where: str, imported: Imported) -> None:
    picture = connection.execute(sa.select(pictures).where(pictures.c.uid == uid)).first()
    if picture is None:
        imported.refused.append(f"{where}: no picture with this uid in the project")
        return
    annotators, raters = tree.get("annotators"), tree.get("raters")
    annotators = annotators if isinstance(annotators, list) else []
    named = isinstance(raters, list) and len(raters) == len(annotators) and all(isinstance(r, str) for r in raters)
    words = answers_lib.count_words(picture.prompt)
    for index, given in enumerate(annotators):
        name = raters[index][:100] if named else f"annotator {index}"
        try:
            scaled = _scaled(given, tree, picture)
            answer = answers_lib.check(scaled, words, picture.width, picture.height, complete=True)
        except answers_lib.BadAnswer as why:
            imported.refused.append(f"{where}: annotators[{index}]: {one_line(why, 200)}")
            continue
        person = _person(connection, name, now)
        key = (answers.c.picture_id == picture.id, answers.c.person_id == person)
        if connection.execute(sa.select(answers.c.id).where(*key)).first() is not None:
            imported.already += 1
            continue
        held = {"picture_id": picture.id, "person_id": person}
        connection.execute(sa.insert(assignments).values(**held, state="expired", until=now, number=0))
        saving.store(
            connection,
            {
                **held,
                "answer": answers_lib.dumps(answer),
                "complete": True,
                "skip_reason": None,
                "revision": 1,
                "seconds": 0.0,
            },
            now,
        )
        imported.new += 1


def _scaled(given: Any, tree: Any, picture: Any) -> Any:
    """The answer with its points in pixels of the picture, where it was shown in another size."""
    size = tree.get("width"), tree.get("height")
    if size == (picture.width, picture.height) or not all(isinstance(s, int) and s > 0 for s in size):
        return given
    if not isinstance(given, dict):
        return given
    scaled = dict(given)
    for field in ("points_implausible", "points_misaligned"):
        points = given.get(field)
        if isinstance(points, list) and all(isinstance(p, list) and len(p) == 2 for p in points):
            numbers = [v for p in points for v in p]
            if all(isinstance(v, (int, float)) and abs(v) < 1e6 for v in numbers):
                scaled[field] = [[x * picture.width / size[0], y * picture.height / size[1]] for x, y in points]
    return scaled


def _person(connection: Connection, name: str, now: float) -> int:
    label = f"imported: {name}"
    row = connection.execute(
        sa.select(people.c.id).where(people.c.label == label, people.c.token_name.is_(None))
    ).first()
    if row is not None:
        return row.id
    values = {"label": label, "role": "annotator", "since": now, "active": False}
    pseudonym = f"rater-{secrets.token_hex(5)}"
    return connection.execute(sa.insert(people).values(pseudonym=pseudonym, **values)).inserted_primary_key[0]
