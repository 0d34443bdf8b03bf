"""`rahf select`: candidates in a JSONL file → scores → choice → manifest, with every score and reason.

Beside MANIFEST.jsonl lie MANIFEST.refused.jsonl, MANIFEST.summary.json and the folder MANIFEST.scores, from which an
interrupted call goes on, and another choice among the same candidates is made without scoring them again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from rahf.core.batch import SCORES
from rahf.core.errors import ScoreError
from rahf.core.files import open_atomically
from rahf.scoring import blocks, files, records
from rahf.scoring import run as score_lib
from rahf.scoring.job import Job, ScoringSummary
from rahf.scoring.records import ReadOptions
from rahf.steer import best_of_n as select_lib
from rahf.steer.best_of_n import Selection


@dataclasses.dataclass(frozen=True)
class Choice:
    """Options of `rahf.steer.best_of_n.select`; see there."""

    key: str = "plausibility"
    threshold: float | None = None
    quantile: float | None = None
    best_of: bool = True
    min_gap: float | None = None
    require: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises ValueError for a wrong option, before anything is scored."""
        self.select(np.zeros((0, len(SCORES))), [], str)

    def select(self, scores: np.ndarray, groups: Sequence[Any], name: Callable[[int], str]) -> Selection:
        """Applies the options."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return select_lib.select(scores, groups=groups, name=name, **given)


@dataclasses.dataclass(frozen=True)
class Chosen:
    """What `choose` wrote.

    Attributes:
      manifest, chosen, refused, summary: paths; `chosen` is None if it was not asked for.
      candidates, selected, groups: counts of those that were scored.
      threshold: the value of the key from which on candidates were kept; None: none was asked for.
      scoring: counts of the scoring, refused ones among them.
    """

    manifest: pathlib.Path
    chosen: pathlib.Path | None
    refused: pathlib.Path
    summary: pathlib.Path
    candidates: int
    selected: int
    groups: int
    threshold: float | None
    scoring: ScoringSummary


def choose(
    model: str | os.PathLike,
    candidates: str | os.PathLike,
    out: str | os.PathLike,
    choice: Choice = Choice(),
    *,
    chosen: str | os.PathLike | None = None,
    batch_size: int = 16,
    block_size: int = 1024,
    restart: bool = False,
    progress: bool = False,
    load: Callable[[str], Any] | None = None,
) -> Chosen:
    """Scores the candidates of a JSONL file, chooses among them, and writes the manifest.

    Args:
      model: run directory, checkpoint directory or exported file.
      candidates: one JSON object per line with `image` (path, relative to the file's folder), `prompt`, and
        optionally `group` (text or whole number; the prompt, if there is none). Other fields are kept.
      out: the manifest: each scored candidate with its own fields and `line`, `scores`, `selected`, `rank` in its
        group, `gap` to the second of it, `reason`, `prompt_cut` and `model`. In the order of the candidates.
      choice: how to choose.
      chosen: also write the selected lines alone, as they were given; for training.
      batch_size, block_size, restart, progress, load: as in `rahf.scoring.score`.

    Returns:
      Paths and counts. Equal input gives equal bytes, interrupted or not.

    Raises:
      ValueError: a wrong option, a file that would be overwritten, or no candidate that can be scored.
      OSError: something cannot be read or written.
    """
    choice.check()
    paths = _paths(candidates, out, chosen)
    scores_folder = paths["manifest"].with_suffix(".scores")
    summary = score_lib.score(
        model,
        [os.fspath(candidates)],
        scores_folder,
        batch_size=batch_size,
        block_size=block_size,
        restart=restart,
        progress=progress,
        load=load,
    )
    if not summary.scored:
        why = f"{scores_folder}/refused.jsonl"
        raise ScoreError(f"{candidates}: none of {summary.rows} candidates can be scored; see {why}")
    job = Job(os.path.abspath(scores_folder), ReadOptions(), batch_size)
    lines, groups, scores = _read(job, summary)
    selection = choice.select(scores, groups, lambda index: f"line {lines[index]}")
    _write(paths, candidates, job, summary, scores, selection)
    _write_refused(paths["refused"], scores_folder)
    kept = Chosen(
        paths["manifest"],
        paths.get("chosen"),
        paths["refused"],
        paths["summary"],
        len(scores),
        len(selection.indices),
        len(set(groups)),
        selection.threshold,
        summary,
    )
    files.write(str(paths["summary"]), _summary(kept, choice))
    return kept


def _paths(candidates, out, chosen) -> dict[str, pathlib.Path]:
    out = pathlib.Path(out).absolute()
    paths = {
        "manifest": out,
        "refused": out.with_suffix(".refused.jsonl"),
        "summary": out.with_suffix(".summary.json"),
    }
    if chosen is not None:
        paths["chosen"] = pathlib.Path(chosen).absolute()
    taken = [os.path.realpath(candidates), *map(os.path.realpath, paths.values())]
    if len(set(taken)) < len(taken):
        raise ScoreError(f"{out}: the candidates, the manifest and what lies beside it must be different files")
    if files.is_url(os.fspath(candidates)) or not os.fspath(candidates).lower().endswith(".jsonl"):
        raise ScoreError(f"{candidates}: expected a local file of candidates whose name ends in .jsonl")
    return paths


def _read(job: Job, summary: ScoringSummary) -> tuple[np.ndarray, list[int], np.ndarray]:
    """Line numbers, groups (as numbers) and scores [N,4] of what was scored; only these are held in memory."""
    lines: list[int] = []
    groups: list[int] = []
    known: dict[str, int] = {}
    scores = np.full((summary.scored, len(SCORES)), np.nan)
    for _, _, batch in job.rows(summary.blocks, ("row", "group", *SCORES, "error")):
        batch = batch.filter(batch["error"].is_null())
        start = len(lines)
        lines += batch["row"].to_pylist()
        groups += [known.setdefault(group, len(known)) for group in batch["group"].to_pylist()]
        for at, name in enumerate(SCORES):
            scores[start : len(lines), at] = batch[name].to_numpy(zero_copy_only=False)
    return np.array(lines), groups, np.round(scores, 6)


def _write(paths, candidates, job: Job, summary: ScoringSummary, scores: np.ndarray, selection: Selection) -> None:
    """The manifest, line by line, and the selected lines alone."""
    kept = set(selection.indices.tolist())
    with contextlib.ExitStack() as stack:
        manifest = stack.enter_context(open_atomically(paths["manifest"]))
        chosen = stack.enter_context(open_atomically(paths["chosen"])) if "chosen" in paths else None
        for index, (line, row, cut, model) in enumerate(_scored_lines(candidates, job, summary)):
            gap = selection.gap[index]
            entry = records.parse(line) | {
                "line": row,
                "scores": dict(zip(SCORES, scores[index].tolist())),
                "selected": index in kept,
                "rank": int(selection.rank[index]) or None,
                "gap": None if np.isnan(gap) else round(float(gap), 6),
                "reason": selection.reasons[index],
                "prompt_cut": cut,
                "model": model,
            }
            manifest.write((json.dumps(entry, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))
            if chosen is not None and index in kept:
                chosen.write(line.rstrip(b"\r\n") + b"\n")


def _scored_lines(candidates, job: Job, summary: ScoringSummary) -> Iterator[tuple[bytes, int, bool, str]]:
    """The lines that were scored, in order, with their numbers, whether the prompt was cut, and the model."""
    with open(candidates, "rb") as file:
        lines = blocks.lines(file)
        for _, model, batch in job.rows(summary.blocks, ("row", "prompt_cut", "error")):
            for found in batch.to_pylist():
                if found["error"] is None:
                    line = next(line for number, _, line in lines if number == found["row"])
                    yield line, found["row"], found["prompt_cut"], model


def _write_refused(path: pathlib.Path, scores_folder: pathlib.Path) -> None:
    found = [json.loads(line) for line in (scores_folder / "refused.jsonl").read_text().splitlines()]
    lines = [json.dumps({"line": one["row"], "image": one["key"], "reason": one["error"]}) for one in found]
    files.write(str(path), "".join(line + "\n" for line in lines).encode())


def _summary(kept: Chosen, choice: Choice) -> bytes:
    document = {
        "model": kept.scoring.model,
        "choice": dataclasses.asdict(choice),
        "ties": "the earlier line; scores are compared at six decimals",
        "threshold": kept.threshold,
        "candidates": kept.candidates,
        "groups": kept.groups,
        "selected": kept.selected,
        "refused": kept.scoring.refused,
        "prompts_cut": kept.scoring.prompts_cut,
    }
    return (json.dumps(document, indent=2) + "\n").encode()
