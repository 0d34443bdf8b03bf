"""What the application stores: one table per thing.

Answers are JSON text in the form of an annotator in a feedback file (docs/data.md). Times are seconds since 1970 (UTC).
"""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()

#: Name → value: version of the tables, secret key, folder of pictures, rules of the project.
settings = Table(
    "settings", metadata, Column("name", String(64), primary_key=True), Column("value", Text, nullable=False)
)

#: Purpose of a picture: "work" is exported; "training" is shown first, with its answer afterwards; "gold" has an answer
#: that nobody is told, and measures people.
PURPOSES = ("work", "training", "gold")

pictures = Table(
    "pictures",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("uid", String(1024), nullable=False, unique=True),
    Column("name", Text, nullable=False),  # path below the folder
    Column("prompt", Text, nullable=False),
    Column("width", Integer, nullable=False),  # of the upright picture, in pixels
    Column("height", Integer, nullable=False),
    Column("digest", String(64), nullable=False),  # sha256 of the file
    Column("purpose", String(8), nullable=False, default="work"),
    Column("answer", Text),  # of training and gold pictures
    Column("explanation", Text),  # shown with the answer of a training picture
    Column("wanted", Integer, nullable=False),  # number of people
    Column("taken", Integer, nullable=False, default=0),  # people who have answered or hold a lease
    Column("answered", Integer, nullable=False, default=0),
    Column("skipped", Integer, nullable=False, default=0),
    Column("dispute", Float),  # largest spread of a score, 0..1; None: fewer than two answers
    Column("position", Float, nullable=False),  # small first: random, or how sure a critic is (`Project.order`)
    Index("pictures_next", "purpose", "taken", "position"),
    Index("pictures_order", "purpose", "position", "taken", "wanted", "skipped"),
    Index("pictures_disputed", "dispute"),
    Index("pictures_counts", "purpose", "answered", "wanted", "skipped"),
)

people = Table(
    "people",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("pseudonym", String(32), nullable=False, unique=True),
    Column("label", Text, nullable=False),  # what the administrator calls the person; never exported
    Column("role", String(16), nullable=False),  # "annotator" or "administrator"
    Column("token_name", String(32), unique=True),  # finds the row; not secret
    Column("token_hash", String(64)),
    Column("platform_id", String(128), unique=True),  # such as PROLIFIC_PID
    Column("completion_code", String(32)),
    Column("session", Integer, nullable=False, default=1),  # raising it ends all sessions
    Column("active", Boolean, nullable=False, default=True),
    Column("since", Float, nullable=False),
)

#: Who was shown which picture. State: "leased", "answered", "skipped", "expired".
assignments = Table(
    "assignments",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("picture_id", ForeignKey("pictures.id"), nullable=False),
    Column("person_id", ForeignKey("people.id"), nullable=False),
    Column("state", String(16), nullable=False),
    Column("until", Float, nullable=False),  # end of the lease
    Column("number", Integer, nullable=False),  # the person's how manieth picture this is, from 0
    UniqueConstraint("picture_id", "person_id"),
    Index("assignments_leases", "state", "until"),
    Index("assignments_person", "person_id", "number"),
)

#: The current answer of a person to a picture.
answers = Table(
    "answers",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("picture_id", ForeignKey("pictures.id"), nullable=False),
    Column("person_id", ForeignKey("people.id"), nullable=False),
    Column("answer", Text, nullable=False),
    Column("complete", Boolean, nullable=False),
    Column("skip_reason", Text),
    Column("revision", Integer, nullable=False),
    Column("seconds", Float, nullable=False),  # that the person looked at the picture
    Column("saved", Float, nullable=False),
    UniqueConstraint("picture_id", "person_id"),
    Index("answers_person", "person_id", "complete", "saved", "seconds"),
)

#: Every save that was acknowledged, under the id that the browser gave it. Nothing is ever removed from here.
saves = Table(
    "saves",
    metadata,
    Column("save_id", String(64), primary_key=True),
    Column("picture_id", ForeignKey("pictures.id"), nullable=False),
    Column("person_id", ForeignKey("people.id"), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("current", Boolean, nullable=False),  # False: a newer revision was already there
    Column("body", Text, nullable=False),
    Column("received", Float, nullable=False),
)

#: What an administrator has decided on a disputed picture.
adjudications = Table(
    "adjudications",
    metadata,
    Column("picture_id", ForeignKey("pictures.id"), primary_key=True),
    Column("person_id", ForeignKey("people.id"), nullable=False),
    Column("answer", Text, nullable=False),
    Column("decided", Float, nullable=False),
)

#: Keys of links by which people of a platform join.
studies = Table(
    "studies",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("key_name", String(32), nullable=False, unique=True),
    Column("key_hash", String(64), nullable=False),
    Column("most_people", Integer, nullable=False),
    Column("joined", Integer, nullable=False, default=0),
)

#: Marks of a critic, one row for each picture that it has seen.
premarks = Table(
    "premarks",
    metadata,
    Column("picture_id", ForeignKey("pictures.id"), primary_key=True),
    Column("model", Text, nullable=False),  # id of the critic
    Column("marks", Text, nullable=False),  # JSON: by field of an answer a list of [x, y, value of the heatmap]
    Column("uncertainty", Float),  # 0..1; None: the critic predicts neither heatmaps nor words
)

#: What a person did after the critic's marks were shown. The row of `answers` stays what the person answered before.
aided = Table(
    "aided",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("picture_id", ForeignKey("pictures.id"), nullable=False),
    Column("person_id", ForeignKey("people.id"), nullable=False),
    Column("model", Text, nullable=False),
    Column("marks", Text, nullable=False),  # as shown
    Column("shown", Float, nullable=False),
    Column("accepted", Text),  # JSON: by field the numbers of the marks with which the person agrees; None: none yet
    Column("answer", Text),  # the person's answer after that; None: it has not changed
    UniqueConstraint("picture_id", "person_id"),
)

#: Tables that databases of an earlier rahf do not have; they are added when such a database is opened.
ADDED_LATER = (premarks, aided)
