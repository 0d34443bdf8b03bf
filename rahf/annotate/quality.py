"""What administrators see: progress, people, disputed pictures with everybody's answers; and their decisions."""

from __future__ import annotations

import json
import math
import statistics
from typing import Any

import numpy as np
import sqlalchemy as sa

from rahf.annotate import agreement, gold
from rahf.annotate import answers as answers_lib
from rahf.annotate.agreement import Judgement
from rahf.annotate.database import Database
from rahf.annotate.tables import adjudications, answers, people, pictures
from rahf.core.errors import AnnotateError
from rahf.core.labels import SCORES
from rahf.text import split_words, words

#: The newest answers of a person that their page is computed from: it must stay fast in a large project.
RECENT = 300
#: From this spread of a score on (a share of the scale) a picture is disputed.
DISPUTED = 0.5
_QUICK_SECONDS = 5.0
_PAGE = 30
_MOST_OF_AGREEMENT = 300  # pictures


def overview(database: Database) -> dict[str, Any]:
    """Counts of pictures and answers, and every person with theirs."""
    by_purpose = sa.select(
        pictures.c.purpose,
        sa.func.count(),
        sa.func.sum(pictures.c.answered),
        sa.func.sum(pictures.c.wanted),
        sa.func.sum(sa.case((pictures.c.answered >= pictures.c.wanted, 1), else_=0)),
        sa.func.sum(sa.case((pictures.c.skipped >= pictures.c.wanted, 1), else_=0)),
    ).group_by(pictures.c.purpose)
    by_person = (
        sa.select(answers.c.person_id, sa.func.count(), sa.func.avg(answers.c.seconds), sa.func.max(answers.c.saved))
        .where(answers.c.complete)
        .group_by(answers.c.person_id)
    )
    disputed = sa.select(sa.func.count()).select_from(pictures).where(pictures.c.dispute >= DISPUTED)
    names = ("pictures", "answers", "wanted", "finished", "set_aside")
    with database.read() as connection:
        counts = {row[0]: dict(zip(names, map(int, row[1:]))) for row in connection.execute(by_purpose)}
        work = {row[0]: row[1:] for row in connection.execute(by_person)}
        everybody = connection.execute(sa.select(people).order_by(people.c.id)).all()
        tree = {"title": database.project.title, "counts": counts, "disputed": connection.scalar(disputed)}
    tree["people"] = [
        {
            "pseudonym": row.pseudonym,
            "label": row.label,
            "role": row.role,
            "active": bool(row.active),
            "answers": work.get(row.id, (0,))[0],
            "mean_seconds": work[row.id][1] if row.id in work else None,
            "last": work[row.id][2] if row.id in work else None,
        }
        for row in everybody
    ]
    return tree


def person(database: Database, pseudonym: str) -> dict[str, Any]:
    """Quality of a person: agreement with the others, gold, seconds per picture, drift; from the newest answers.

    Raises:
      AnnotateError: nobody has this pseudonym.
    """
    with database.read() as connection:
        row = connection.execute(sa.select(people).where(people.c.pseudonym == pseudonym)).first()
        if row is None:
            raise AnnotateError("nobody has this pseudonym")
        own = connection.execute(
            sa.select(answers.c.picture_id, answers.c.answer, answers.c.seconds, pictures.c.purpose,
                      pictures.c.prompt, pictures.c.height, pictures.c.answer.label("right"))
            .join(pictures, pictures.c.id == answers.c.picture_id)
            .where(answers.c.person_id == row.id, answers.c.complete)
            .order_by(answers.c.saved.desc())
            .limit(RECENT)
        ).all()  # fmt: skip
    work = [one.picture_id for one in own if one.purpose == "work"]
    golden = [
        gold.compare(json.loads(one.answer), json.loads(one.right), split_words(one.prompt), one.height).share
        for one in own
        if one.purpose == "gold" and one.right is not None
    ]
    seconds = [one.seconds for one in own]
    judged = of_pictures(database, work)
    measured = agreement.measure(judged, {pseudonym})["people"].get(pseudonym, {})
    return {
        "pseudonym": pseudonym,
        "label": row.label,
        "active": bool(row.active),
        "answers": len(own),
        "gold": {"pictures": len(golden), "right": statistics.fmean(golden) if golden else None},
        "median_seconds": statistics.median(seconds) if seconds else None,
        "quick": sum(one < _QUICK_SECONDS for one in seconds) / len(seconds) if seconds else None,
        "drift": _drift(judged, pseudonym, work[::-1]),
        **{name: measured.get(name) for name in ("scores", "words", "marks")},
    }


def _drift(judged: list[Judgement], pseudonym: str, order: list[int]) -> float | None:
    """Change, from the first to the last third of a person's answers, of the mean distance to the others' mean score.

    In steps of the scale; positive: farther from the others than before. None: too few common pictures.
    """
    by_picture: dict[int, dict[str, np.ndarray]] = {}
    for one in judged:
        by_picture.setdefault(one.picture, {})[one.person] = np.array([one.answer["scores"][s] for s in SCORES], float)
    distances = []
    for picture in order:
        answered = dict(by_picture.get(picture, {}))
        own = answered.pop(pseudonym, None)
        if own is not None and answered:
            distances.append(float(np.abs(own - np.mean(list(answered.values()), axis=0)).mean()))
    third = len(distances) // 3
    return statistics.fmean(distances[-third:]) - statistics.fmean(distances[:third]) if third else None


def of_pictures(database: Database, numbers: list[int]) -> list[Judgement]:
    """The finished answers to some pictures."""
    if not numbers:
        return []
    query = (
        sa.select(answers.c.picture_id, people.c.pseudonym, answers.c.answer, pictures.c.width, pictures.c.height)
        .join(pictures, pictures.c.id == answers.c.picture_id)
        .join(people, people.c.id == answers.c.person_id)
        .where(answers.c.complete, answers.c.picture_id.in_(numbers))
        .order_by(answers.c.picture_id, people.c.pseudonym)
    )
    with database.read() as connection:
        return [Judgement(p, who, json.loads(text), w, h) for p, who, text, w, h in connection.execute(query)]


def measured_agreement(database: Database) -> dict[str, Any]:
    """Agreement on the newest 300 pictures that several people have answered: more would take too long for a page.

    Of single people the page has `person`, so they are left out.
    """
    query = (
        sa.select(pictures.c.id)
        .where(pictures.c.purpose == "work", pictures.c.answered > 1)
        .order_by(pictures.c.id.desc())
        .limit(_MOST_OF_AGREEMENT)
    )
    with database.read() as connection:
        numbers = list(connection.scalars(query))
    return agreement.measure(of_pictures(database, numbers), only=())


def disputed(database: Database, page: int = 0) -> list[dict[str, Any]]:
    """A page of the pictures that people judge most differently, the most disputed first; decided ones are left out.

    The order is that of the index of disputes, so that no page sorts all disputed pictures.
    """
    work = (pictures.c.purpose + "") == "work"  # no column alone: else SQLite takes an index of purposes, and sorts
    query = (
        sa.select(pictures.c.id, pictures.c.uid, pictures.c.prompt, pictures.c.dispute, pictures.c.answered)
        .outerjoin(adjudications, adjudications.c.picture_id == pictures.c.id)
        .where(pictures.c.dispute >= DISPUTED, work, adjudications.c.picture_id.is_(None))
        .order_by(pictures.c.dispute.desc(), pictures.c.id.desc())
        .limit(_PAGE)
        .offset(page * _PAGE)
    )
    with database.read() as connection:
        return [dict(row._mapping) for row in connection.execute(query)]


def set_aside(database: Database, page: int = 0) -> list[dict[str, Any]]:
    """A page of the pictures that as many people have skipped as were to answer, with their reasons."""
    query = (
        sa.select(pictures.c.id, pictures.c.uid, pictures.c.prompt, pictures.c.skipped)
        .where(pictures.c.purpose == "work", pictures.c.skipped >= pictures.c.wanted)
        .order_by(pictures.c.id)
        .limit(_PAGE)
        .offset(page * _PAGE)
    )
    with database.read() as connection:
        rows = [dict(row._mapping) for row in connection.execute(query)]
        for row in rows:
            reasons = sa.select(answers.c.skip_reason).where(
                answers.c.picture_id == row["id"], answers.c.skip_reason.is_not(None)
            )
            row["reasons"] = list(connection.scalars(reasons))
    return rows


def picture(database: Database, number: int) -> dict[str, Any]:
    """A picture with everybody's finished answers, and the decision on it.

    Raises:
      AnnotateError: no such picture.
    """
    with database.read() as connection:
        row = connection.execute(sa.select(pictures).where(pictures.c.id == number)).first()
        if row is None:
            raise AnnotateError("there is no such picture")
        decided = connection.scalar(sa.select(adjudications.c.answer).where(adjudications.c.picture_id == number))
    return {
        "id": row.id,
        "uid": row.uid,
        "prompt": row.prompt,
        "pieces": [list(piece) for piece in words.pieces(row.prompt, split_words(row.prompt))],
        "width": row.width,
        "height": row.height,
        "dispute": row.dispute,
        "answers": {one.person: one.answer for one in of_pictures(database, [number])},
        "decision": json.loads(decided) if decided is not None else None,
    }


def adjudicate(database: Database, person_id: int, number: Any, answer: Any) -> None:
    """Stores an administrator's decision on a picture, in place of an earlier one.

    Raises:
      AnnotateError: no such picture, or an answer that is not complete.
    """
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 2**31:
        raise AnnotateError("picture: expected a whole number")
    with database.write() as connection:
        row = connection.execute(sa.select(pictures).where(pictures.c.id == number)).first()
        if row is None:
            raise AnnotateError("there is no such picture")
        checked = answers_lib.check(answer, answers_lib.count_words(row.prompt), row.width, row.height, complete=True)
        values = {"person_id": person_id, "answer": answers_lib.dumps(checked), "decided": database.clock()}
        changed = connection.execute(
            sa.update(adjudications).where(adjudications.c.picture_id == number).values(**values)
        )
        if not changed.rowcount:
            connection.execute(sa.insert(adjudications).values(picture_id=number, **values))


def table(tree: dict[str, Any]) -> list[str]:
    """Agreement as lines of text."""

    def shown(value: float | None) -> str:
        return "   –" if value is None or math.isnan(value) else f"{value:.2f}"

    lines = [
        f"{tree['answers']} answers to {tree['pictures']} pictures, {tree['pictures_with_two']} of them by two or more",
        "",
        f"{'score':<14} alpha  equal  ≤ 1 step   largest difference 0, 1, 2, 3, 4 steps",
    ]
    for name, score in tree["scores"].items():
        counts = " ".join(f"{count:>6}" for count in score["max_difference"])
        lines.append(
            f"{name:<14} {shown(score['alpha']):>5}  {shown(score['equal']):>5}  {shown(score['within_one_step']):>8}  "
            f"{counts}"
        )
    lines += ["", f"words: Fleiss' kappa {shown(tree['words']['kappa']).strip()}"]
    for name, marks in tree["marks"].items():
        lines.append(
            f"{name}: marks of two people overlap with IoU {shown(marks['iou']).strip()}, Dice "
            f"{shown(marks['dice']).strip()}; no marks at all in {shown(marks['both_empty']).strip()} of the pairs"
        )
    lines += ["", f"{'person':<18} answers   alpha of {', '.join(SCORES)}   words   Dice {' '.join(tree['marks'])}"]
    for name, one in tree["people"].items():
        alphas = " ".join(f"{shown(score['alpha']):>5}" for score in one["scores"].values())
        dice = " ".join(f"{shown(marks['dice']):>5}" for marks in one["marks"].values())
        lines.append(f"{name:<18} {one['answers']:>7}   {alphas}   {shown(one['words']['kappa']):>5}   {dice}")
    return lines
