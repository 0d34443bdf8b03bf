"""Marks of a critic beside those of people: shown after a person's own answer, and never counted as theirs.

`critic_marks` makes them. The server gives those of a picture out only to a person who has finished it. From then on
the person's answer of before is kept as it is; marks of the critic with which the person agrees, and an answer that the
person changes, are stored beside it (`tables.aided`) and exported as such.
"""

from __future__ import annotations

import json
import random
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from rahf.annotate import assignments
from rahf.annotate.answers import BadAnswer
from rahf.annotate.database import Database
from rahf.annotate.saving import NotTheirs
from rahf.annotate.tables import aided, answers, pictures, premarks
from rahf.core.errors import AnnotateError


class Shown(NamedTuple):
    """Marks of a critic that a person was shown, and what the person did then.

    Attributes:
      model: id of the critic.
      marks: by field of an answer, a list of [x, y] in pixels of the upright picture and the heatmap's value there.
      accepted: by field, numbers of the marks with which the person agrees.
      answer: the person's answer after that; None: as before.
    """

    model: str
    marks: dict[str, list[list[float]]]
    accepted: dict[str, list[int]]
    answer: dict[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        """What the page gets."""
        return {"model": self.model, "marks": self.marks, "accepted": self.accepted}

    def described(self, rater: str) -> dict[str, Any]:
        """What exports hold of it.

        Args:
          rater: pseudonym of the person.
        """
        tree: dict[str, Any] = {"rater": rater, "model": self.model}
        for field, marks in self.marks.items():
            tree[field] = [
                {"point": [x, y], "value": value, "accepted": number in self.accepted.get(field, [])}
                for number, (x, y, value) in enumerate(marks)
            ]
        return tree if self.answer is None else {**tree, "answer": self.answer}


def of_row(row: Any) -> Shown:
    """Of a row with the columns model, marks, accepted and answer of `tables.aided`."""
    accepted, answer = (None if text is None else json.loads(text) for text in (row.accepted, row.answer))
    return Shown(row.model, json.loads(row.marks), accepted or {}, answer)


def are_there(database: Database) -> bool:
    """Whether there are marks of a critic."""
    with database.read() as connection:
        return connection.scalar(sa.select(premarks.c.picture_id).limit(1)) is not None


def shown(connection: Connection, person_id: int, picture_id: int) -> Shown | None:
    """What a person was shown of a picture; None: nothing."""
    query = sa.select(aided).where(aided.c.picture_id == picture_id, aided.c.person_id == person_id)
    row = connection.execute(query).first()
    return None if row is None else of_row(row)


def show(database: Database, person_id: int, picture_id: int) -> Shown | None:
    """The critic's marks of a picture that the person has finished; notes that they were shown.

    Returns:
      None: the critic marks nothing, or has not seen the picture.

    Raises:
      NotTheirs: the person was never given the picture.
      BadAnswer: the person has not finished it.
    """
    return database.together(lambda connection: _show(connection, database.clock(), person_id, picture_id))


def _show(connection: Connection, now: float, person_id: int, picture_id: int) -> Shown | None:
    if not assignments.is_theirs(connection, picture_id, person_id):
        raise NotTheirs("there is no such picture")
    before = shown(connection, person_id, picture_id)
    if before is not None:
        return before
    complete = sa.select(answers.c.complete).where(answers.c.picture_id == picture_id, answers.c.person_id == person_id)
    if not connection.scalar(complete):
        raise BadAnswer("picture: finish your own answer first")
    row = connection.execute(sa.select(premarks).where(premarks.c.picture_id == picture_id)).first()
    if row is None or not any(json.loads(row.marks).values()):
        return None
    values = {"picture_id": picture_id, "person_id": person_id, "model": row.model, "marks": row.marks}
    connection.execute(sa.insert(aided).values(**values, shown=now))
    return shown(connection, person_id, picture_id)


def set_order(database: Database, order: str, seed: int = 0) -> None:
    """Puts the pictures at work into an order (`Project.order`).

    Args:
      database: of the project.
      order: "random" or "uncertainty"; pictures that the critic has not seen come last.
      seed: of the random order.

    Raises:
      AnnotateError: an unknown order, or no marks of a critic to order by.
    """
    if order == "uncertainty" and not are_there(database):
        raise AnnotateError("--order uncertainty: no critic has seen the pictures; give one with --model")
    database.set_project(order=order)
    if order == "uncertainty":
        sure = sa.select(1 - premarks.c.uncertainty).where(premarks.c.picture_id == pictures.c.id).scalar_subquery()
        with database.write() as connection:
            values = {"position": sa.func.coalesce(sure, 2.0)}
            connection.execute(sa.update(pictures).where(pictures.c.purpose == "work").values(**values))
        return
    generator = random.Random(seed)
    with database.write() as connection:
        numbers = connection.scalars(
            sa.select(pictures.c.id).where(pictures.c.purpose == "work").order_by(pictures.c.id)
        ).all()
        if numbers:
            change = sa.update(pictures).where(pictures.c.id == sa.bindparam("key")).values(position=sa.bindparam("at"))
            connection.execute(change, [{"key": number, "at": generator.random()} for number in numbers])
