"""How far the people of a project agree, by label, by person and by picture."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import sqlalchemy as sa

from data_pipelines.feedback.opinions import POINT_FIELDS
from data_pipelines.prepare.consolidate import draw_discs
from rahf.annotate.database import Database
from rahf.annotate.tables import answers, people, pictures
from rahf.core.labels import SCORES
from rahf.metrics import agreement as measures

_MAP_SIDE = 64  # pixels of the square maps on which marks are compared; a disc of a square picture has a radius of 3.2


class Judgement(NamedTuple):
    """A finished answer of a person to a picture."""

    picture: int
    person: str  # pseudonym
    answer: Mapping[str, Any]
    width: int
    height: int


def judgements(database: Database, purpose: str = "work") -> Iterator[Judgement]:
    """All finished answers to pictures of a purpose, by picture."""
    query = (
        sa.select(answers.c.picture_id, people.c.pseudonym, answers.c.answer, pictures.c.width, pictures.c.height)
        .join(pictures, pictures.c.id == answers.c.picture_id)
        .join(people, people.c.id == answers.c.person_id)
        .where(answers.c.complete, pictures.c.purpose == purpose)
        .order_by(answers.c.picture_id, people.c.pseudonym)
    )
    with database.read() as connection:
        for picture, person, answer, width, height in connection.execute(query):
            yield Judgement(picture, person, json.loads(answer), width, height)


def measure(all_judgements: Sequence[Judgement], only: Collection[str] | None = None) -> dict[str, Any]:
    """Agreement as a tree that JSON can hold: NaN is None.

    Args:
      all_judgements: by picture.
      only: the people to describe, by pseudonym; None: everybody.

    Returns:
      ``pictures``, ``answers``, ``pictures_with_two``; ``scores`` by name (``alpha``, ``equal``, ``within_one_step``,
      ``max_difference`` as counts of 0, 0.25 … 1); ``words`` (``kappa``); ``marks`` by heatmap (``iou``, ``dice``,
      ``both_empty``: means over pairs of people of one picture); ``people`` by pseudonym with the same of each person
      and the others.
    """
    names = sorted({one.person for one in all_judgements})
    numbers = {one: number for number, one in enumerate(dict.fromkeys(j.picture for j in all_judgements))}
    columns = {name: number for number, name in enumerate(names)}
    ratings = np.full((len(SCORES), len(numbers), len(names)), math.nan)
    for one in all_judgements:
        for index, score in enumerate(SCORES):
            ratings[index, numbers[one.picture], columns[one.person]] = one.answer["scores"][score]
    words = _word_table(all_judgements, columns)
    marks = _mark_pairs(all_judgements)
    tree: dict[str, Any] = {
        "pictures": len(numbers),
        "answers": len(all_judgements),
        "pictures_with_two": int(((~np.isnan(ratings[0])).sum(1) > 1).sum()) if len(numbers) else 0,
        "scores": {score: _score(ratings[index]) for index, score in enumerate(SCORES)},
        "words": {"kappa": _number(measures.fleiss_kappa(words))},
        "marks": {heatmap: _overlap([pair[2] for pair in marks[heatmap]]) for heatmap in POINT_FIELDS},
        "people": {},
    }
    described = names if only is None else [name for name in names if name in only]
    if described:
        starts = _starts(all_judgements)
        pairs = {heatmap: _by_person(of_heatmap) for heatmap, of_heatmap in marks.items()}
        for name in described:
            own = [one for one in all_judgements if one.person == name]
            tree["people"][name] = {
                **_person(ratings, words, own, columns[name], numbers, starts),
                "marks": {heatmap: _overlap(pairs[heatmap].get(name, [])) for heatmap in POINT_FIELDS},
            }
    return tree


def _person(
    ratings: np.ndarray,
    words: np.ndarray,
    own: Sequence[Judgement],
    column: int,
    numbers: Mapping[int, int],
    starts: Mapping[int, int],
) -> dict[str, Any]:
    """Scores and words of one person and the others: on the person's pictures, because no other one counts."""
    pictures = [numbers[one.picture] for one in own]
    places = [starts[one.picture] + word for one in own for word in range(len(one.answer["word_labels"]))]
    return {
        "answers": len(own),
        "scores": {
            score: {
                "alpha": _number(measures.krippendorff_alpha(ratings[index][pictures], rater=column)),
                "bias": _number(_bias(ratings[index][pictures], column)),
            }
            for index, score in enumerate(SCORES)
        },
        "words": {"kappa": _number(measures.cohen_kappa_with_others(words[places], column))},
    }


def _starts(all_judgements: Sequence[Judgement]) -> dict[int, int]:
    """Place of the first word of each picture among the words of all."""
    starts, total = {}, 0
    for one in all_judgements:
        if one.picture not in starts:
            starts[one.picture] = total
            total += len(one.answer["word_labels"])
    return starts


def _by_person(
    pairs: Sequence[tuple[str, str, measures.PairOverlap]],
) -> dict[str, list[measures.PairOverlap]]:
    """The pairs of each person."""
    overlaps: dict[str, list[measures.PairOverlap]] = {}
    for first, second, overlap in pairs:
        overlaps.setdefault(first, []).append(overlap)
        overlaps.setdefault(second, []).append(overlap)
    return overlaps


def _word_table(all_judgements: Sequence[Judgement], columns: Mapping[str, int]) -> np.ndarray:
    """float [words of all pictures, people]: 1 aligned, 0 misaligned, NaN no answer."""
    starts = _starts(all_judgements)
    total = sum(len(labels) for labels in {one.picture: one.answer["word_labels"] for one in all_judgements}.values())
    table = np.full((total, len(columns)), math.nan)
    for one in all_judgements:
        labels = one.answer["word_labels"]
        table[starts[one.picture] : starts[one.picture] + len(labels), columns[one.person]] = labels
    return table


def _mark_pairs(all_judgements: Sequence[Judgement]) -> dict[str, list[tuple[str, str, measures.PairOverlap]]]:
    """By heatmap: two people of one picture, and the overlap of their marks."""
    pairs: dict[str, list[tuple[str, str, measures.PairOverlap]]] = {heatmap: [] for heatmap in POINT_FIELDS}
    by_picture: dict[int, list[Judgement]] = {}
    for one in all_judgements:
        by_picture.setdefault(one.picture, []).append(one)
    for group in by_picture.values():
        for heatmap, field in POINT_FIELDS.items():
            maps = [draw_discs(one.answer[field], one.width, one.height, _MAP_SIDE) for one in group]
            overlaps = zip(itertools.combinations(group, 2), measures.pair_overlaps(np.stack(maps)))
            pairs[heatmap] += [(first.person, second.person, overlap) for (first, second), overlap in overlaps]
    return pairs


def _overlap(pairs: Sequence[measures.PairOverlap]) -> dict[str, Any]:
    marked = [pair for pair in pairs if not pair.both_empty]
    return {
        "iou": _number(np.mean([pair.iou for pair in marked]) if marked else math.nan),
        "dice": _number(np.mean([pair.dice for pair in marked]) if marked else math.nan),
        "both_empty": _number(1 - len(marked) / len(pairs) if pairs else math.nan),
    }


def _score(ratings: np.ndarray) -> dict[str, Any]:
    differences = measures.max_differences(ratings)
    return {
        "alpha": _number(measures.krippendorff_alpha(ratings)),
        "equal": _number(differences.equal),
        "within_one_step": _number(differences.within_one_step),
        "max_difference": differences.counts.tolist(),
    }


def _bias(ratings: np.ndarray, column: int) -> float:
    """Mean of a person's score minus the mean of the others on the same pictures; NaN without a common picture."""
    own, others = ratings[:, column], np.delete(ratings, column, axis=1)
    count = (~np.isnan(others)).sum(1)
    both = ~np.isnan(own) & (count > 0)
    if not both.any():
        return math.nan
    return float((own[both] - np.nansum(others[both], 1) / count[both]).mean())


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
