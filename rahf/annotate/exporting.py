"""Finished answers → a feedback file that `rahf prepare feedback` reads. People are pseudonyms in every export."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import sqlalchemy as sa

from rahf.annotate import premarks
from rahf.annotate.database import Database
from rahf.annotate.premarks import Shown
from rahf.annotate.tables import adjudications, aided, answers, people, pictures
from rahf.core.files import open_atomically

#: In place of a pseudonym where an administrator has decided.
ADJUDICATOR = "adjudicator"


class Exported(NamedTuple):
    """One picture with the finished answers to it, by pseudonym, in the order of the pseudonyms.

    `shown` has the marks of a critic that people were shown after their answer, by pseudonym; `answers` are of before.
    """

    uid: str
    name: str
    prompt: str
    width: int
    height: int
    answers: dict[str, dict[str, Any]]
    shown: dict[str, Shown]

    def premarks(self) -> list[dict[str, Any]]:
        """What the critic's marks were, and what each person did with them."""
        return [one.described(rater) for rater, one in self.shown.items()]


def collect(database: Database, purpose: str = "work", adjudicated: bool = False) -> Iterator[Exported]:
    """Pictures of a purpose that have at least one finished answer, in the order of their import.

    Args:
      database: of the project.
      purpose: of the pictures.
      adjudicated: where an administrator has decided, the decision stands in place of the answers, by "adjudicator".
    """
    query = (
        sa.select(
            pictures.c.uid,
            pictures.c.name,
            pictures.c.prompt,
            pictures.c.width,
            pictures.c.height,
            people.c.pseudonym,
            answers.c.answer.label("own"),
            aided.c.model,
            aided.c.marks,
            aided.c.accepted,
            aided.c.answer,
            adjudications.c.answer.label("decided"),
        )
        .join(answers, answers.c.picture_id == pictures.c.id)
        .join(people, people.c.id == answers.c.person_id)
        .outerjoin(aided, sa.and_(aided.c.picture_id == answers.c.picture_id, aided.c.person_id == answers.c.person_id))
        .outerjoin(adjudications, adjudications.c.picture_id == pictures.c.id)
        .where(answers.c.complete, pictures.c.purpose == purpose)
        .order_by(pictures.c.id, people.c.pseudonym)
    )
    with database.read() as connection:
        current: Exported | None = None
        for row in connection.execute(query):
            if current is None or current.uid != row.uid:
                if current is not None:
                    yield current
                decided = adjudicated and row.decided is not None
                first = {ADJUDICATOR: json.loads(row.decided)} if decided else {}
                current = Exported(row.uid, row.name, row.prompt, row.width, row.height, first, {})
            if not decided:
                current.answers[row.pseudonym] = json.loads(row.own)
                if row.marks is not None:
                    current.shown[row.pseudonym] = premarks.of_row(row)
        if current is not None:
            yield current


def line(exported: Exported) -> dict[str, Any]:
    """A line of a feedback file (docs/data.md). Points are in pixels of the upright picture."""
    tree = {
        "uid": exported.uid,
        "image": exported.name,
        "prompt": exported.prompt,
        "width": exported.width,
        "height": exported.height,
        "annotators": list(exported.answers.values()),
        "raters": list(exported.answers),
        "adjudicated": ADJUDICATOR in exported.answers,
    }
    return {**tree, "premarks": exported.premarks()} if exported.shown else tree


def write_feedback(exported: Iterator[Exported], path: str | os.PathLike) -> tuple[int, int]:
    """Writes a feedback file; an older file stays until the new one is whole.

    Returns:
      Number of pictures, and of answers.
    """
    count = answered = 0
    with open_atomically(path) as file:
        for one in exported:
            file.write(json.dumps(line(one), ensure_ascii=False).encode() + b"\n")
            count += 1
            answered += len(one.answers)
    return count, answered
