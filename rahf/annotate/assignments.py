"""Who sees which picture: as many different people per picture as wanted, in balance, never the same person twice.

A person holds a few pictures ahead of the one at work (`Project.ahead`) under a lease. A picture that was not answered
when its lease ends goes to somebody else. An answer that comes late is stored all the same: nobody's work is lost.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from rahf.annotate.database import Database, Project
from rahf.annotate.tables import assignments, pictures

#: States in which a picture counts as taken by the person.
_TAKEN = ("leased", "answered")


def hold(database: Database, person_id: int) -> list[int]:
    """Gives a person work: renews the leases that it holds and fills them up to `Project.ahead`.

    First come training pictures, then pictures that the fewest people have taken (or, by `Project.order`, of which a
    critic is least sure), and among them a hidden gold picture after each `Project.gold_every`.

    Returns:
      Numbers of the pictures that the person holds and has not answered, in order; empty: nothing is left to do.
    """
    project = database.project
    return database.together(lambda connection: _hold(connection, database.clock(), project, person_id))


def _hold(connection: Connection, now: float, project: Project, person_id: int) -> list[int]:
    release_expired(connection, now)
    held = _held(connection, person_id)
    if held:
        connection.execute(
            sa.update(assignments)
            .where(assignments.c.person_id == person_id, assignments.c.state == "leased")
            .values(until=now + project.lease_seconds)
        )
    done = _counts(connection, person_id)
    limit = project.most_pictures - done["work"] if project.most_pictures else project.ahead
    number = done["all"]
    while len(held) < project.ahead:
        work_held = sum(purpose == "work" for _, purpose in held)
        chosen = _choose(connection, person_id, project, done, held, work_held < limit)
        if chosen is None:
            break
        _lease(connection, chosen[0], person_id, now + project.lease_seconds, number)
        number += 1
        held.append(chosen)
        done[chosen[1]] = done.get(chosen[1], 0) + 1
        done["all"] += 1
    return [picture for picture, _ in held]


def release_expired(connection: Connection, now: float) -> int:
    """Ends the leases that are over, so that others may take the pictures; returns how many."""
    over = connection.execute(
        sa.select(assignments.c.id, assignments.c.picture_id).where(
            assignments.c.state == "leased", assignments.c.until < now
        )
    ).all()
    for assignment, picture in over:
        connection.execute(sa.update(assignments).where(assignments.c.id == assignment).values(state="expired"))
        connection.execute(sa.update(pictures).where(pictures.c.id == picture).values(taken=pictures.c.taken - 1))
    return len(over)


def is_theirs(connection: Connection, picture_id: int, person_id: int) -> bool:
    """Whether a person was ever given a picture."""
    return (
        connection.scalar(
            sa.select(assignments.c.id).where(
                assignments.c.picture_id == picture_id, assignments.c.person_id == person_id
            )
        )
        is not None
    )


def finish(connection: Connection, picture_id: int, person_id: int, state: str) -> None:
    """Ends a person's lease of a picture: "answered" or "skipped". Counts who has the picture."""
    row = connection.execute(
        sa.select(assignments.c.id, assignments.c.state).where(
            assignments.c.picture_id == picture_id, assignments.c.person_id == person_id
        )
    ).one()
    if row.state == state:
        return
    connection.execute(sa.update(assignments).where(assignments.c.id == row.id).values(state=state))
    changes = {
        "taken": int(state in _TAKEN) - int(row.state in _TAKEN),
        "answered": int(state == "answered") - int(row.state == "answered"),
        "skipped": int(state == "skipped") - int(row.state == "skipped"),
    }
    values = {name: pictures.c[name] + change for name, change in changes.items() if change}
    if values:
        connection.execute(sa.update(pictures).where(pictures.c.id == picture_id).values(**values))


def _held(connection: Connection, person_id: int) -> list[tuple[int, str]]:
    """Pictures that a person holds, and their purpose."""
    rows = connection.execute(
        sa.select(pictures.c.id, pictures.c.purpose)
        .join(assignments, assignments.c.picture_id == pictures.c.id)
        .where(assignments.c.person_id == person_id, assignments.c.state == "leased")
        .order_by(assignments.c.number)
    )
    return [(picture, purpose) for picture, purpose in rows]


def _counts(connection: Connection, person_id: int) -> dict[str, int]:
    """How many pictures of each purpose a person has, and all together."""
    rows = connection.execute(
        sa.select(
            pictures.c.purpose, sa.func.count(), sa.func.sum(sa.cast(assignments.c.state == "answered", sa.Integer))
        )
        .join(assignments, assignments.c.picture_id == pictures.c.id)
        .where(assignments.c.person_id == person_id)
        .group_by(pictures.c.purpose)
    ).all()
    counts = {"all": 0, "work": 0, "training": 0, "gold": 0}
    for purpose, count, answered in rows:
        counts["all"] += count
        counts[purpose] = int(answered or 0) if purpose == "work" else count
    return counts


def _choose(
    connection: Connection,
    person_id: int,
    project: Project,
    done: dict[str, int],
    held: list[tuple[int, str]],
    more_work: bool,
) -> tuple[int, str] | None:
    """The next picture for a person, and its purpose."""
    if done["training"] < project.training:
        picture = _first(connection, person_id, "training", limited=False)
        if picture is not None:
            return picture, "training"
    if any(purpose == "training" for _, purpose in held):
        return None  # work begins when the training is done
    if not more_work:
        return None
    since_gold = done["all"] - done["training"] - done["gold"] * (project.gold_every + 1)
    if project.gold_every and since_gold >= project.gold_every:
        picture = _first(connection, person_id, "gold", limited=False)
        if picture is not None:
            return picture, "gold"
    picture = _first(connection, person_id, "work", limited=True, balanced=project.order == "random")
    return None if picture is None else (picture, "work")


def _first(connection: Connection, person_id: int, purpose: str, limited: bool, balanced: bool = True) -> int | None:
    """The next of the pictures that the person has never had.

    Args:
      connection: of a write.
      person_id: for whom.
      purpose: of the picture.
      limited: leave out those that as many people have taken as wanted.
      balanced: what the fewest people have taken comes first; False: one picture after the other.
    """
    mine = sa.select(assignments.c.id).where(
        assignments.c.picture_id == pictures.c.id,
        assignments.c.person_id == person_id,
        assignments.c.state != "expired",
    )
    query = sa.select(pictures.c.id).where(pictures.c.purpose == purpose, ~mine.exists())
    if limited:
        # A picture that as many people have skipped as were to answer it is left to the administrator.
        query = query.where(pictures.c.taken < pictures.c.wanted, pictures.c.skipped < pictures.c.wanted)
    if limited and balanced:
        query = query.order_by(pictures.c.taken, pictures.c.position)
    else:
        query = query.order_by(pictures.c.position)
    return connection.scalar(query.limit(1))


def _lease(connection: Connection, picture_id: int, person_id: int, until: float, number: int) -> None:
    again = connection.execute(
        sa.update(assignments)
        .where(assignments.c.picture_id == picture_id, assignments.c.person_id == person_id)
        .values(state="leased", until=until, number=number)
    )
    if not again.rowcount:
        connection.execute(
            sa.insert(assignments).values(
                picture_id=picture_id, person_id=person_id, state="leased", until=until, number=number
            )
        )
    connection.execute(sa.update(pictures).where(pictures.c.id == picture_id).values(taken=pictures.c.taken + 1))
