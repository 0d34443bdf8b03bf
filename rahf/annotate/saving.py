"""Stores what people answer. A save has an id from the browser: sent again, it is acknowledged and not repeated.

The browser keeps a save until it is acknowledged, and numbers the revisions of an answer. The answer with the highest
revision is the current one; of two with the same revision, from two windows, the one that came last. Every acknowledged
save stays in the table `saves`, so that nothing that was acknowledged is lost, whichever is current.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from rahf.annotate import answers as answers_lib
from rahf.annotate import assignments as assignments_lib
from rahf.annotate.answers import BadAnswer
from rahf.annotate.database import Database
from rahf.annotate.tables import answers, pictures, saves

_SAVE_ID = re.compile(r"[A-Za-z0-9_-]{16,64}")
_MOST_SECONDS = 24 * 3600.0


class NotTheirs(answers_lib.AnnotateError):
    """The picture does not exist for this person."""


class Receipt(NamedTuple):
    """The acknowledgement of a save.

    Attributes:
      save_id: the browser's.
      revision: that the save has.
      current: whether it was the newest when it came.
      repeated: whether it had been stored before.
    """

    save_id: str
    revision: int
    current: bool
    repeated: bool


def save(database: Database, person_id: int, body: Any) -> Receipt:
    """Stores a save; it is on disk when this returns.

    Args:
      database: of the project.
      person_id: who answers.
      body: parsed JSON with ``save_id``, ``picture``, ``revision`` (from 1), ``seconds``, ``complete``, and either
        ``answer`` or ``skip_reason``.

    Raises:
      NotTheirs: the person was never given the picture, or another one has used the save id.
      BadAnswer: a field cannot be used.
    """
    save_id, picture_id, revision, seconds = _fields(body)
    with database.write() as connection:
        known = connection.execute(sa.select(saves).where(saves.c.save_id == save_id)).first()
        if known is not None:
            if known.person_id != person_id or known.picture_id != picture_id:
                raise NotTheirs("there is no such save")
            return Receipt(save_id, known.revision, known.current, True)
        if not assignments_lib.is_theirs(connection, picture_id, person_id):
            raise NotTheirs("there is no such picture")
        picture = connection.execute(sa.select(pictures).where(pictures.c.id == picture_id)).one()
        values = _values(body, picture)
        row = {"picture_id": picture_id, "person_id": person_id, "revision": revision, "seconds": seconds, **values}
        current = store(connection, row, database.clock())
        connection.execute(
            sa.insert(saves).values(
                save_id=save_id,
                picture_id=picture_id,
                person_id=person_id,
                revision=revision,
                current=current,
                body=json.dumps({**values, "seconds": seconds}, separators=(",", ":")),
                received=database.clock(),
            )
        )
        return Receipt(save_id, revision, current, False)


def _fields(body: Any) -> tuple[str, int, int, float]:
    if not isinstance(body, Mapping):
        raise BadAnswer(f"expected an object, found {type(body).__name__}")
    save_id, picture_id, revision = body.get("save_id"), body.get("picture"), body.get("revision")
    seconds = body.get("seconds", 0)
    if not isinstance(save_id, str) or not _SAVE_ID.fullmatch(save_id):
        raise BadAnswer("save_id: expected 16 to 64 letters, digits, - or _")
    for name, value, least in (("picture", picture_id, 0), ("revision", revision, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
            raise BadAnswer(f"{name}: expected a whole number from {least}")
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not math.isfinite(seconds) or seconds < 0:
        raise BadAnswer("seconds: expected a number from 0")
    return save_id, picture_id, revision, min(float(seconds), _MOST_SECONDS)


def _values(body: Mapping[str, Any], picture: Any) -> dict[str, Any]:
    """The columns of `answers` that the browser decides."""
    complete, reason = body.get("complete"), body.get("skip_reason")
    if not isinstance(complete, bool):
        raise BadAnswer("complete: expected true or false")
    if reason is not None:
        reason, complete = answers_lib.check_skip(reason), False
    words = answers_lib.count_words(picture.prompt)
    answer = answers_lib.check(body.get("answer", {}), words, picture.width, picture.height, complete)
    return {"answer": answers_lib.dumps(answer), "complete": complete, "skip_reason": reason}


def store(connection: Connection, row: dict[str, Any], now: float) -> bool:
    """Makes a save the current answer unless a newer one is there; returns whether it did."""
    key = (answers.c.picture_id == row["picture_id"], answers.c.person_id == row["person_id"])
    before = connection.execute(sa.select(answers).where(*key)).first()
    if before is not None and before.revision > row["revision"]:
        return False
    if before is not None and before.complete and not row["complete"] and row["skip_reason"] is None:
        # A finished answer under change stays finished where the change can stand as one.
        row["complete"] = _is_complete(connection, row)
        if not row["complete"]:
            return False
    if before is None:
        connection.execute(sa.insert(answers).values(**row, saved=now))
    else:
        connection.execute(sa.update(answers).where(*key).values(**row, saved=now))
    if row["skip_reason"] is not None:
        assignments_lib.finish(connection, row["picture_id"], row["person_id"], "skipped")
    elif row["complete"]:
        assignments_lib.finish(connection, row["picture_id"], row["person_id"], "answered")
    if row["complete"] or (before is not None and before.complete):
        _note_dispute(connection, row["picture_id"])
    return True


def _is_complete(connection: Connection, row: Mapping[str, Any]) -> bool:
    picture = connection.execute(sa.select(pictures).where(pictures.c.id == row["picture_id"])).one()
    words = answers_lib.count_words(picture.prompt)
    try:
        answers_lib.check(json.loads(row["answer"]), words, picture.width, picture.height, complete=True)
    except BadAnswer:
        return False
    return True


def _note_dispute(connection: Connection, picture_id: int) -> None:
    rows = connection.scalars(
        sa.select(answers.c.answer).where(answers.c.picture_id == picture_id, answers.c.complete)
    ).all()
    dispute = answers_lib.spread([json.loads(row) for row in rows])
    connection.execute(sa.update(pictures).where(pictures.c.id == picture_id).values(dispute=dispute))
