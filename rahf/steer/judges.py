"""Models that score pictures by name: which scores each has, and the scores of pictures on disk."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rahf.core import names
from rahf.core.errors import ArgumentError
from rahf.core.labels import SCORES
from rahf.critic import energy, loading
from rahf.images.decode import load_rgb

#: Name of the one score of a model that is the cosine of image and text: CLIP, PickScore, HPS v2.
COSINE = "cosine"


class Judge(NamedTuple):
    """A model that scores pictures.

    Attributes:
      name: for tables; differs from those of the others.
      path: as the user wrote it.
      model: of `rahf.load`, or any object with a critic's functions ``tokens`` and ``scores``.
      model_id: equal for equal models, wherever they lie.
      scores: that count, of `SCORES`, or ``(COSINE,)``.
    """

    name: str
    path: str
    model: Any
    model_id: str
    scores: tuple[str, ...]

    @property
    def columns(self) -> list[str]:
        """Names of its scores, with its own in front."""
        return [f"{self.name} {score}" for score in self.scores]

    def measure(self, pixels: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """Scores float64 [B,k] of pictures uint8 [B,h,w,3], high = good.

        Cosines are in [-1,1], other scores in [0,1].

        Raises:
          ArgumentError: a score that is not finite; names the prompt.
        """
        scores = np.asarray(self.model.scores(pixels, *self.model.tokens(list(prompts))), np.float64)
        if self.scores == (COSINE,):
            values = 2 * scores[:, [SCORES.index("alignment")]] - 1
        else:
            values = scores[:, [SCORES.index(score) for score in self.scores]]
        finite = np.isfinite(values).all(1)
        if not finite.all():
            prompt = names.one_line(prompts[int(np.argmin(finite))], 60)
            raise ArgumentError(f"{self.path}: its score of the picture for {prompt!r} is not finite; leave it out")
        return values


def model_and_scores(place: str) -> tuple[str, tuple[str, ...]]:
    """``MODEL:alignment,overall`` → model and names of scores; a model alone has ()."""
    model, colon, listed = place.rpartition(":")
    wanted = tuple(name.strip() for name in listed.split(","))
    if not colon or os.path.exists(place) or not set(wanted) <= {*SCORES, COSINE}:
        return place, ()
    return model, wanted


def is_cosine(model: Any) -> bool:
    """Whether a model's alignment is the cosine of a CLIP, mapped to [0,1]."""
    clip = getattr(getattr(getattr(model, "config", None), "model", None), "clip", None)
    return clip is not None and clip.scores == "cosine" and "alignment" in clip.cosine_scores


def judge(place: str | Any, taken: Sequence[str] = ()) -> Judge:
    """Loads a judge.

    Args:
      place: what `rahf.load` takes, perhaps with ``:SCORE,SCORE``; or a model itself.
      taken: names that others have.

    Raises:
      ArgumentError: a score that it does not have.
      CheckpointError, ExportError: as `rahf.load`.
    """
    path, wanted = (
        model_and_scores(os.fspath(place)) if isinstance(place, (str, os.PathLike)) else (type(place).__name__, ())
    )
    model = loading.load(path) if isinstance(place, (str, os.PathLike)) else place
    outputs = getattr(model, "outputs", None)
    available = (COSINE,) if is_cosine(model) else SCORES if outputs is None else tuple(outputs.scores)
    missing = [name for name in wanted if name not in available]
    if missing or not available:
        raise ArgumentError(f"{place}: has no score {', '.join(missing)}; its scores: {', '.join(available) or 'none'}")
    name = _free(pathlib.PurePath(path).name or str(path), taken)
    return Judge(name, str(path), model, getattr(model, "model_id", str(path)), wanted or available)


def _free(name: str, taken: Sequence[str]) -> str:
    """The name, numbered if it is taken."""
    base = names.one_line(name, 40) or "model"
    return next(n for n in (base, *(f"{base} ({k})" for k in range(2, len(taken) + 3))) if n not in taken)


def judges(places: Sequence[str | Any]) -> list[Judge]:
    """Loads judges (those that are loaded stay as they are); one that is named twice counts once, with all its scores.

    Raises:
      ArgumentError, CheckpointError, ExportError: as `judge`.
    """
    loaded: list[Judge] = []
    for place in places:
        taken = [other.name for other in loaded]
        one = place._replace(name=_free(place.name, taken)) if isinstance(place, Judge) else judge(place, taken)
        same = next((number for number, other in enumerate(loaded) if other.model_id == one.model_id), None)
        if same is None:
            loaded.append(one)
        else:
            merged = dict.fromkeys((*loaded[same].scores, *one.scores))
            loaded[same] = loaded[same]._replace(scores=tuple(merged))
    return loaded


def guide(place: str | Any) -> tuple[Judge, Judge]:
    """Loads a model that steers: with the scores that it raises (its own cosine, else ``overall``), and as a judge.

    Raises:
      ArgumentError, CheckpointError, ExportError: as `judge`.
    """
    one = judge(place)
    named = isinstance(place, (str, os.PathLike)) and model_and_scores(os.fspath(place))[1]
    if named or "overall" not in one.scores:
        return one, one
    return one._replace(scores=("overall",)), one


def guide_energy(guide: Judge, prompts: Sequence[str]) -> energy.Energy:
    """What a guide lowers: the squared spherical distance of a CLIP, else 1 - the mean of its scores."""
    if guide.scores == (COSINE,):
        return energy.clip_distance(guide.model, list(prompts))
    weights = {score: 1 / len(guide.scores) for score in guide.scores}
    return energy.score(guide.model, list(prompts), guide.scores[0] if len(weights) == 1 else weights)


def measure_files(
    judge: Judge,
    files: Sequence[str | os.PathLike],
    prompts: Sequence[str],
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Scores float64 [N,k] of pictures on disk, all of one size.

    Args:
      batch_size: pictures at once; the last batch is filled up, so that one program serves all.
      progress: called with the number of pictures of each batch.
    """
    size, parts = min(batch_size, len(files)), []
    for first in range(0, len(files), size):
        rows = [min(row, len(files) - 1) for row in range(first, first + size)]
        pictures = np.stack([load_rgb(files[row]) for row in rows])
        count = min(size, len(files) - first)
        parts.append(judge.measure(pictures, [prompts[row] for row in rows])[:count])
        if progress is not None:
            progress(count)
    return np.concatenate(parts)
