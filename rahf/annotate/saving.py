"""Stores what people answer. A save has an id from the browser: sent again, it is acknowledged and not repeated.

The browser keeps a save until it is acknowledged, and numbers the revisions of an answer. The answer with the highest
revision is the current one; of two with the same revision, from two windows, the one that came last. Every acknowledged
save stays in the table `saves`, so that nothing that was acknowledged is lost, whichever is current.

Once a critic's marks were shown to a person, what the person had answered before stays as it is, and later saves go to
the table `aided` (`rahf.annotate.premarks`): a person's own answer is never one that a model has had a part in.
"""

from __future__ import annotations

import concurrent.futures
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
from rahf.annotate.tables import aided, answers, assignments, pictures, saves

_SAVE_ID = re.compile(r"[A-Za-z0-9_-]{16,64}")
_MOST_SECONDS = 24 * 3600.0


# Statements of every save, built once: building them takes longer than running them.
_KNOWN = (
    sa.select(saves.c.person_id, saves.c.picture_id, saves.c.revision, saves.c.current, pictures.c.purpose)
    .join(pictures, pictures.c.id == saves.c.picture_id)
    .where(saves.c.save_id == sa.bindparam("save_id"))
)
#: A picture that the person was given, and the person's current answer (None where there is none).
_STATE = (
    sa.select(
        pictures.c.prompt,
        pictures.c.width,
        pictures.c.height,
        pictures.c.purpose,
        assignments.c.state,
        answers.c.revision,
        answers.c.complete,
        answers.c.answer,
        aided.c.marks.label("premarks"),
        aided.c.accepted,
    )
    .join(assignments, assignments.c.picture_id == pictures.c.id)
    .outerjoin(
        answers,
        sa.and_(answers.c.picture_id == assignments.c.picture_id, answers.c.person_id == assignments.c.person_id),
    )
    .outerjoin(
        aided, sa.and_(aided.c.picture_id == assignments.c.picture_id, aided.c.person_id == assignments.c.person_id)
    )
    .where(pictures.c.id == sa.bindparam("picture"), assignments.c.person_id == sa.bindparam("person"))
)
_NOTE = sa.insert(saves)
_COLUMNS = ("picture_id", "person_id", "answer", "complete", "skip_reason", "revision", "seconds", "saved")
_INSERT = sa.insert(answers).values({name: sa.bindparam(name) for name in _COLUMNS})
_UPDATE = (
    sa.update(answers)
    .where(answers.c.picture_id == sa.bindparam("picture"), answers.c.person_id == sa.bindparam("person"))
    .values({name: sa.bindparam(name) for name in _COLUMNS[2:]})
)
_FINISHED = sa.select(answers.c.answer).where(answers.c.picture_id == sa.bindparam("picture"), answers.c.complete)
_DISPUTE = sa.update(pictures).where(pictures.c.id == sa.bindparam("picture")).values(dispute=sa.bindparam("spread"))
_AIDED = (
    sa.update(aided)
    .where(aided.c.picture_id == sa.bindparam("picture"), aided.c.person_id == sa.bindparam("person"))
    .values(answer=sa.bindparam("changed"), accepted=sa.bindparam("agreed"))
)


class NotTheirs(answers_lib.AnnotateError):
    """The picture does not exist for this person."""


class Receipt(NamedTuple):
    """The acknowledgement of a save.

    Attributes:
      save_id: the browser's.
      revision: that the save has.
      current: whether it was the newest when it came.
      repeated: whether it had been stored before.
      training: whether the picture is one of which the person is told what was expected.
    """

    save_id: str
    revision: int
    current: bool
    repeated: bool
    training: bool


def save(database: Database, person_id: int, body: Any) -> Receipt:
    """Stores a save; it is on disk when this returns.

    Args:
      database: of the project.
      person_id: who answers.
      body: parsed JSON with ``save_id``, ``picture``, ``revision`` (from 1), ``seconds``, ``complete``, and either
        ``answer`` or ``skip_reason``; where a critic's marks were shown also ``accepted``, by field of an answer the
        numbers of the marks with which the person agrees.

    Raises:
      NotTheirs: the person was never given the picture, or another one has used the save id.
      BadAnswer: a field cannot be used.
    """
    return save_later(database, person_id, body).result()


def save_later(database: Database, person_id: int, body: Any) -> concurrent.futures.Future[Receipt]:
    """Like `save`, for a caller who has other things to do meanwhile; it is on disk when the future is done."""
    fields = _fields(body)
    return database.together_later(lambda connection: _save(connection, database.clock(), person_id, fields, body))


def _save(
    connection: Connection, now: float, person_id: int, fields: tuple[str, int, int, float], body: Mapping[str, Any]
) -> Receipt:
    save_id, picture_id, revision, seconds = fields
    known = connection.execute(_KNOWN, {"save_id": save_id}).first()
    if known is not None:
        if known.person_id != person_id or known.picture_id != picture_id:
            raise NotTheirs("there is no such save")
        return Receipt(save_id, known.revision, known.current, True, known.purpose == "training")
    state = connection.execute(_STATE, {"picture": picture_id, "person": person_id}).first()
    if state is None:
        raise NotTheirs("there is no such picture")
    values = _values(body, state)
    accepted = _accepted(body.get("accepted"), state)
    row = {"picture_id": picture_id, "person_id": person_id, "revision": revision, "seconds": seconds, **values}
    current = _store(connection, row, state, now, accepted)
    noted = {**values, "seconds": seconds} | ({} if accepted is None else {"accepted": accepted})
    text = json.dumps(noted, separators=(",", ":"))
    connection.execute(
        _NOTE,
        {
            "save_id": save_id,
            "picture_id": picture_id,
            "person_id": person_id,
            "revision": revision,
            "current": current,
            "body": text,
            "received": now,
        },
    )
    return Receipt(save_id, revision, current, False, state.purpose == "training")


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


def _accepted(accepted: Any, state: Any) -> dict[str, list[int]] | None:
    """The numbers of a critic's marks with which the person agrees, by field; None: the save says nothing of them."""
    if accepted is None:
        return None
    if state.premarks is None:
        raise BadAnswer("accepted: no marks of a critic were shown of this picture")
    shown = json.loads(state.premarks)
    if not isinstance(accepted, dict) or set(accepted) - set(shown):
        raise BadAnswer(f"accepted: expected an object with {', '.join(shown)}")
    checked = {}
    for field, marks in shown.items():
        numbers = accepted.get(field, [])
        good = isinstance(numbers, list) and all(type(n) is int and 0 <= n < len(marks) for n in numbers)
        if not good or len(set(numbers)) < len(numbers):
            raise BadAnswer(f"accepted.{field}: expected different numbers of marks, each below {len(marks)}")
        checked[field] = sorted(numbers)
    return checked


def store(connection: Connection, row: dict[str, Any], now: float) -> bool:
    """Makes a checked answer the current one unless a newer one is there; returns whether it did.

    Args:
      connection: of a write.
      row: all columns of `tables.answers` but ``saved``.
      now: the time.
    """
    state = connection.execute(_STATE, {"picture": row["picture_id"], "person": row["person_id"]}).one()
    return _store(connection, row, state, now)


def _store(
    connection: Connection, row: dict[str, Any], state: Any, now: float, accepted: dict[str, list[int]] | None = None
) -> bool:
    if state.revision is not None and state.revision > row["revision"]:
        return False
    if state.premarks is not None:
        changed = row["answer"] if row["answer"] != state.answer else None
        agreed = state.accepted if accepted is None else json.dumps(accepted, separators=(",", ":"))
        connection.execute(_AIDED, {"changed": changed, "agreed": agreed, **_key(row)})
        row["answer"] = state.answer  # that of before
    if state.complete and not row["complete"] and row["skip_reason"] is None:
        # A finished answer under change stays finished where the change can stand as one.
        row["complete"] = _is_complete(state, row)
        if not row["complete"]:
            return False
    connection.execute(_INSERT if state.revision is None else _UPDATE, {**row, "saved": now, **_key(row)})
    outcome = "skipped" if row["skip_reason"] is not None else "answered" if row["complete"] else state.state
    if outcome != state.state:
        assignments_lib.finish(connection, row["picture_id"], row["person_id"], outcome)
    if _judges_otherwise(row, state):
        _note_dispute(connection, row["picture_id"])
    return True


def _key(row: Mapping[str, Any]) -> dict[str, int]:
    return {"picture": row["picture_id"], "person": row["person_id"]}


def _is_complete(picture: Any, row: Mapping[str, Any]) -> bool:
    words = answers_lib.count_words(picture.prompt)
    try:
        answers_lib.check(json.loads(row["answer"]), words, picture.width, picture.height, complete=True)
    except BadAnswer:
        return False
    return True


def _judges_otherwise(row: Mapping[str, Any], state: Any) -> bool:
    """Whether the finished scores of the person have changed."""
    after = json.loads(row["answer"])["scores"] if row["complete"] else None
    before = json.loads(state.answer)["scores"] if state.complete else None
    return after != before


def _note_dispute(connection: Connection, picture_id: int) -> None:
    rows = connection.scalars(_FINISHED, {"picture": picture_id}).all()
    dispute = answers_lib.spread([json.loads(row) for row in rows])
    connection.execute(_DISPUTE, {"picture": picture_id, "spread": dispute})
