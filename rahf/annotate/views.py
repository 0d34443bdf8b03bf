"""What the browser of a person is told: their own pictures and answers, and nothing of anybody else."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from rahf.annotate import answers as answers_lib
from rahf.annotate import gold, people, premarks
from rahf.annotate.database import Database
from rahf.annotate.people import Person
from rahf.annotate.saving import NotTheirs
from rahf.annotate.tables import answers, assignments, pictures
from rahf.annotate.wording import SCALES
from rahf.text import split_words, words


def me(database: Database, person: Person, cookie: str) -> dict[str, Any]:
    """Who the person is, the rules of the project, and how far the person is."""
    project = database.project
    return {
        "pseudonym": person.pseudonym,
        "role": person.role,
        "form_token": people.form_token(database, cookie),
        "title": project.title,
        "scales": [scale._asdict() for scale in SCALES],
        "skip_reasons": list(answers_lib.SKIP_REASONS),
        "premarks": premarks.are_there(database),
        **progress(database, person),
    }


def progress(database: Database, person: Person) -> dict[str, Any]:
    """Numbers of pictures that a person has answered, skipped and may still answer (None: as long as there are any)."""
    states = (
        sa.select(assignments.c.state, sa.func.count())
        .where(assignments.c.person_id == person.id)
        .group_by(assignments.c.state)
    )
    with database.read() as connection:
        counts = {state: count for state, count in connection.execute(states)}
    most = database.project.most_pictures
    return {
        "answered": counts.get("answered", 0),
        "skipped": counts.get("skipped", 0),
        "most": most or None,
    }


def items(database: Database, person: Person, numbers: list[int]) -> list[dict[str, Any]]:
    """Pictures of a person for the page, in the order asked for.

    Raises:
      NotTheirs: the person was never given one of them.
    """
    with database.read() as connection:
        return [_item(connection, person, number) for number in numbers]


def history(database: Database, person: Person) -> list[dict[str, Any]]:
    """Numbers and states of the pictures that a person was given, in order; those taken back are not in it."""
    query = (
        sa.select(assignments.c.picture_id, assignments.c.state)
        .where(assignments.c.person_id == person.id, assignments.c.state != "expired")
        .order_by(assignments.c.number)
    )
    with database.read() as connection:
        return [{"id": picture, "state": state} for picture, state in connection.execute(query)]


def _item(connection: Connection, person: Person, number: int) -> dict[str, Any]:
    query = (
        sa.select(pictures, assignments.c.number, assignments.c.state)
        .join(assignments, assignments.c.picture_id == pictures.c.id)
        .where(pictures.c.id == number, assignments.c.person_id == person.id)
    )
    row = connection.execute(query).first()
    if row is None:
        raise NotTheirs("there is no such picture")
    own = connection.execute(
        sa.select(answers).where(answers.c.picture_id == number, answers.c.person_id == person.id)
    ).first()
    tree = {
        "id": row.id,
        "number": row.number,
        "prompt": row.prompt,
        "pieces": [list(piece) for piece in words.pieces(row.prompt, split_words(row.prompt))],
        "words": len(split_words(row.prompt)),
        "width": row.width,
        "height": row.height,
        "training": row.purpose == "training",
        "state": row.state,
        "answer": json.loads(own.answer) if own is not None else None,
        "revision": own.revision if own is not None else 0,
        "seconds": own.seconds if own is not None else 0,
        "complete": bool(own.complete) if own is not None else False,
        "skip_reason": own.skip_reason if own is not None else None,
    }
    shown = premarks.shown(connection, person.id, number)
    if shown is not None:
        tree["premarks"] = shown.to_json()
        tree["answer"] = shown.answer or tree["answer"]  # the person goes on from the latest one
    if row.purpose == "training" and own is not None and own.complete:
        tree["feedback"] = _feedback(row, json.loads(own.answer))
    return tree


def _feedback(row: Any, answer: dict[str, Any]) -> dict[str, Any]:
    right = json.loads(row.answer)
    compared = gold.compare(answer, right, split_words(row.prompt), row.height)
    return {
        "right": compared.right,
        "checks": compared.checks,
        "remarks": compared.remarks,
        "answer": right,
        "explanation": row.explanation,
    }
