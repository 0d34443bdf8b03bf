"""What a critic marks in the pictures of a project, and how unsure it is of each: stored for `premarks`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import sqlalchemy as sa

from data_pipelines.feedback.folder import Folder
from data_pipelines.feedback.opinions import POINT_FIELDS
from data_pipelines.prepare.counts import Refused
from rahf.annotate.database import Database
from rahf.annotate.tables import pictures, premarks
from rahf.core.batch import HEATMAPS
from rahf.core.errors import AnnotateError
from rahf.core.names import one_line
from rahf.images.regions import RegionOptions, components

if TYPE_CHECKING:
    from rahf.critic.critic import Critic
    from rahf.critic.feedback import Feedback

#: The most marks of one kind that a person is shown; of more regions the largest.
MOST_MARKS = 16
_BATCH = 32  # pictures that are read and stored at once
#: Training pictures show what was expected; a critic has no part in that. Gold pictures must look like all others.
_PURPOSES = ("work", "gold")


class Made(NamedTuple):
    """Counts of `make`: pictures that the critic saw now and before, and one line for each that it could not see."""

    new: int
    already: int
    refused: list[str]


def make(
    database: Database, critic: Critic, threshold: float = 0.5, progress: Callable[[int, int], None] | None = None
) -> Made:
    """Stores the marks of a critic for all pictures that it has not seen. An interrupted call may be repeated.

    Marks of another critic are replaced; what was shown to people stays.

    Args:
      database: of the project.
      critic: of `rahf.load`.
      threshold: a region is where the heatmap is at least this.
      progress: called with the pictures done and those to do.

    Raises:
      AnnotateError: a threshold that is not above 0 and at most 1, or a critic that predicts scores only.
    """
    if not 0 < threshold <= 1:
        raise AnnotateError(f"--premark-threshold is {threshold}, expected a number above 0 and at most 1")
    if critic.network.forward is None:
        raise AnnotateError(f"--model {critic.name}: it predicts scores only; marks need heatmaps")
    folder, refused, new = Folder(database.folder), [], 0
    todo, already = _unseen(database, critic.model_id)
    for batch in _readable(folder, todo, refused):
        rows = []

        def note(at: int, error: Exception, batch: Sequence[tuple[Any, bytes]] = batch) -> None:
            refused.append(f"{one_line(batch[at][0].name, 100)}: {one_line(error, 200)}")

        prompts = [row.prompt for row, _ in batch]
        for at, feedback in critic.iterate([data for _, data in batch], prompts, on_error=note):
            rows.append(
                {
                    "picture_id": batch[at][0].id,
                    "model": feedback.model_id,
                    "marks": json.dumps(marks_of(feedback, threshold), separators=(",", ":")),
                    "uncertainty": uncertainty(feedback),
                }
            )
        with database.write() as connection:
            for row in rows:
                connection.execute(sa.delete(premarks).where(premarks.c.picture_id == row["picture_id"]))
                connection.execute(sa.insert(premarks).values(**row))
        new += len(rows)
        if progress is not None:
            progress(new, len(todo))
    return Made(new, already, refused)


def _unseen(database: Database, model: str) -> tuple[list[Any], int]:
    """Pictures of which there are no marks of a critic, and the number of the others."""
    seen = sa.select(premarks.c.picture_id).where(premarks.c.picture_id == pictures.c.id, premarks.c.model == model)
    wanted = pictures.c.purpose.in_(_PURPOSES)
    columns = (pictures.c.id, pictures.c.name, pictures.c.prompt, pictures.c.digest)
    with database.read() as connection:
        rows = connection.execute(sa.select(*columns).where(wanted, ~seen.exists()).order_by(pictures.c.id)).all()
        total = connection.scalar(sa.select(sa.func.count()).select_from(pictures).where(wanted))
    return list(rows), total - len(rows)


def _readable(folder: Folder, rows: Sequence[Any], refused: list[str]) -> Iterator[list[tuple[Any, bytes]]]:
    """Pictures with the bytes of their files, a few at a time."""
    for first in range(0, len(rows), _BATCH):
        batch = []
        for row in rows[first : first + _BATCH]:
            try:
                data = folder.read(row.name, "image")
            except Refused as why:
                refused.append(f"{one_line(row.name, 100)}: {one_line(why, 200)}")
                continue
            if hashlib.sha256(data).hexdigest() == row.digest:
                batch.append((row, data))
            else:
                refused.append(f"{one_line(row.name, 100)}: the file has changed since it was imported")
        if batch:
            yield batch


def marks_of(feedback: Feedback, threshold: float) -> dict[str, list[list[float]]]:
    """By field of an answer, the places of the largest regions of its heatmap: [x, y, value] where it is highest."""
    marks: dict[str, list[list[float]]] = {field: [] for field in POINT_FIELDS.values()}
    height, width = feedback.size
    for heatmap, field in POINT_FIELDS.items():
        if not feedback.has_heatmap(heatmap):
            continue
        values = _heatmap(feedback, heatmap)
        for region in components(values, RegionOptions(threshold))[:MOST_MARKS]:
            inside = np.where(region.mask, values[region.rows, region.columns], -1)
            row, column = np.unravel_index(np.argmax(inside), inside.shape)
            y = (region.rows.start + row + 0.5) * height / values.shape[0]
            x = (region.columns.start + column + 0.5) * width / values.shape[1]
            marks[field].append([round(float(x), 2), round(float(y), 2), round(region.peak, 4)])
    return marks


def uncertainty(feedback: Feedback) -> float | None:
    """How unsure a critic is of a picture, 0..1 (`uncertainty_of` heatmaps and words); None: it predicts neither."""
    heatmaps = [_heatmap(feedback, name) for name in POINT_FIELDS if feedback.has_heatmap(name)]
    return uncertainty_of([*heatmaps, feedback.word_probabilities])


def uncertainty_of(parts: Sequence[np.ndarray]) -> float | None:
    """The mean over parts of the mean of 4 p (1 - p), 0..1: the variance of a yes or no, as a share of its largest.

    Scores say nothing of it: a critic has no spread for them.

    Args:
      parts: probabilities, such as a heatmap or those of the words; NaN is left out, and so is a part without values.
    """
    values = [part[~np.isnan(part)] for part in parts]
    means = [(4 * part * (1 - part)).mean(dtype=np.float64) for part in values if part.size]
    return float(np.mean(means)) if means else None


def _heatmap(feedback: Feedback, name: str) -> np.ndarray:
    return feedback.network_heatmaps[:, :, HEATMAPS.index(name)]
