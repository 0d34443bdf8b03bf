"""Who may come in: tokens, links of platforms, sessions. Nobody can sign up, and there are no default credentials.

A token is ``<name>.<secret>`` with 256 random bits. The database keeps only the SHA-256 of the secret, which needs no
slow hash, because nobody can try 2^256 secrets. Comparisons take the same time wherever two values differ.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from rahf.annotate import tables
from rahf.annotate.database import Database
from rahf.core.errors import AnnotateError

ROLES = ("annotator", "administrator")
#: Query fields in which platforms give a person's id.
PLATFORM_FIELDS = ("PROLIFIC_PID", "workerId", "participant")
_SESSION_SECONDS = 14 * 24 * 3600
_LONGEST_ID = 100
_ABSENT_HASH = hashlib.sha256(b"nobody").hexdigest()  # compared where there is no such token


class Person(NamedTuple):
    """Somebody who has come in."""

    id: int
    pseudonym: str
    label: str
    role: str
    session: int
    completion_code: str | None

    @property
    def administrator(self) -> bool:
        return self.role == "administrator"


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _new_token() -> tuple[str, str, str]:
    """Name, secret's hash, and the token itself."""
    name, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    return name, _hash(secret), f"{name}.{secret}"


def _insert(connection: Connection, label: str, role: str, now: float, **values) -> int:
    row = {"label": label, "role": role, "since": now, "pseudonym": f"rater-{secrets.token_hex(5)}", **values}
    return connection.execute(sa.insert(tables.people).values(**row)).inserted_primary_key[0]


def add(database: Database, label: str, role: str = "annotator") -> str:
    """Adds a person and returns the token, which is nowhere stored.

    Raises:
      AnnotateError: an unknown role, or an empty or very long label.
    """
    if role not in ROLES:
        raise AnnotateError(f"role {role!r:.40}, expected {' or '.join(ROLES)}")
    if not label.strip() or len(label) > 200:
        raise AnnotateError("a person needs a label of 1 to 200 characters, which only administrators see")
    name, hashed, token = _new_token()
    with database.write() as connection:
        _insert(
            connection,
            label.strip(),
            role,
            database.clock(),
            token_name=name,
            token_hash=hashed,
            completion_code=secrets.token_hex(4).upper(),
        )
    return token


def renew(database: Database, pseudonym: str) -> str:
    """Gives a person a new token; the old one and all sessions end.

    Raises:
      AnnotateError: nobody has this pseudonym.
    """
    name, hashed, token = _new_token()
    with database.write() as connection:
        changed = connection.execute(
            sa.update(tables.people)
            .where(tables.people.c.pseudonym == pseudonym)
            .values(token_name=name, token_hash=hashed, session=tables.people.c.session + 1, active=True)
        )
        if not changed.rowcount:
            raise AnnotateError(f"nobody has the pseudonym {pseudonym!r:.60}; `rahf annotate people --db …` lists them")
    return token


def deactivate(database: Database, pseudonym: str) -> None:
    """Keeps a person out; the answers stay. Raises AnnotateError: nobody has this pseudonym."""
    with database.write() as connection:
        changed = connection.execute(
            sa.update(tables.people)
            .where(tables.people.c.pseudonym == pseudonym)
            .values(active=False, session=tables.people.c.session + 1)
        )
        if not changed.rowcount:
            raise AnnotateError(f"nobody has the pseudonym {pseudonym!r:.60}; `rahf annotate people --db …` lists them")


def enter(database: Database, token: str) -> Person | None:
    """The person of a token; None: there is none."""
    name, _, secret = token.partition(".")
    with database.read() as connection:
        row = connection.execute(sa.select(tables.people).where(tables.people.c.token_name == name)).first()
    same = hmac.compare_digest(_hash(secret), row.token_hash if row is not None else _ABSENT_HASH)
    return _person(row) if row is not None and same and row.active else None


def add_study(database: Database, most_people: int) -> str:
    """Makes a key with which up to `most_people` people of a platform can join; returns it."""
    if not 1 <= most_people <= 10**6:
        raise AnnotateError(f"--study {most_people}: expected 1 to 1000000 people")
    name, hashed, key = _new_token()
    with database.write() as connection:
        connection.execute(sa.insert(tables.studies).values(key_name=name, key_hash=hashed, most_people=most_people))
    return key


def join(database: Database, key: str, platform_id: str) -> Person | None:
    """The person with this id of a platform; a new one if the study has room.

    Args:
      database: of the project.
      key: of the study, in the link.
      platform_id: such as the value of ``PROLIFIC_PID``.

    Returns:
      None: wrong key, no usable id, the person is kept out, or the study is full.
    """
    name, _, secret = key.partition(".")
    if not 1 <= len(platform_id) <= _LONGEST_ID or not platform_id.isascii() or not platform_id.isalnum():
        return None
    with database.write() as connection:
        study = connection.execute(sa.select(tables.studies).where(tables.studies.c.key_name == name)).first()
        same = hmac.compare_digest(_hash(secret), study.key_hash if study is not None else _ABSENT_HASH)
        if study is None or not same:
            return None
        stored = f"{study.id}:{platform_id}"
        wanted = sa.select(tables.people).where(tables.people.c.platform_id == stored)
        row = connection.execute(wanted).first()
        if row is None:
            if study.joined >= study.most_people:
                return None
            connection.execute(
                sa.update(tables.studies).where(tables.studies.c.id == study.id).values(joined=study.joined + 1)
            )
            code = secrets.token_hex(4).upper()
            _insert(
                connection,
                f"platform {platform_id}",
                "annotator",
                database.clock(),
                platform_id=stored,
                completion_code=code,
            )
            row = connection.execute(wanted).first()
    return _person(row) if row.active else None


def _person(row) -> Person:
    return Person(row.id, row.pseudonym, row.label, row.role, row.session, row.completion_code)


def session_value(database: Database, person: Person) -> str:
    """The value of the cookie: who, until when, signed with the database's secret key."""
    text = f"{person.id}.{person.session}.{int(database.clock()) + _SESSION_SECONDS}"
    return f"{text}.{_sign(database, 'session', text)}"


def of_session(database: Database, value: str) -> Person | None:
    """The person of a cookie; None: forged, over, or the person is kept out."""
    text, _, signature = value.rpartition(".")
    if not hmac.compare_digest(signature.encode(), _sign(database, "session", text).encode()):
        return None
    number, session, until = (int(part) for part in text.split("."))
    if until < database.clock():
        return None
    with database.read() as connection:
        row = connection.execute(sa.select(tables.people).where(tables.people.c.id == number)).first()
    return _person(row) if row is not None and row.active and row.session == session else None


def form_token(database: Database, cookie: str) -> str:
    """What a page must send with every change, and another site cannot know: it belongs to the cookie's value."""
    return _sign(database, "form", cookie)


def is_form_token(database: Database, cookie: str, value: str) -> bool:
    """Whether a value is the cookie's `form_token`."""
    return hmac.compare_digest(form_token(database, cookie).encode(), value.encode())


def _sign(database: Database, purpose: str, text: str) -> str:
    return hmac.new(database.secret, f"{purpose}\0{text}".encode(), hashlib.sha256).hexdigest()
