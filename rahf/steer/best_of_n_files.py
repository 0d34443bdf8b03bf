"""`rahf select`: candidates in a JSONL file → scores → selection → manifest, with every score and reason.

Beside MANIFEST.jsonl lie MANIFEST.refused.jsonl, MANIFEST.summary.json and the folder MANIFEST.scores. An interrupted
call resumes from that folder, and another selection among the same candidates reads its scores from there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from rahf.core import renamed
from rahf.core.batch import SCORES
from rahf.core.errors import ScoreError
from rahf.core.files import open_atomically, open_regular, read_regular
from rahf.critic import loading
from rahf.scoring import blocks, files
from rahf.scoring import run as scoring
from rahf.scoring.fields import ReadOptions, parse
from rahf.scoring.job import Job, ScoringSummary
from rahf.steer import best_of_n
from rahf.steer.best_of_n import Selection
from rahf.text.words import same_prompt

#: What the manifest adds to the fields of a candidate.
FIELDS = ("line", "scores", "selected", "rank", "gap", "reason", "prompt_cut", "model")


@dataclasses.dataclass(frozen=True)
class SelectionOptions:
    """Options of `rahf.steer.best_of_n.select`; see there."""

    key: str = "plausibility"
    threshold: float | None = None
    quantile: float | None = None
    best_of: bool = True
    min_gap: float | None = None
    require: tuple[str, ...] = ()

    @property
    def deciding(self) -> list[str]:
        """Names of the scores that decide."""
        return [self.key, *(best_of_n.requirement(text).score for text in self.require)]

    def check(self) -> None:
        """Raises ValueError for a wrong option, before anything is scored."""
        self.select(np.zeros((0, len(SCORES))), [], str)

    def select(self, scores: np.ndarray, groups: Sequence[Any], name: Callable[[int], str]) -> Selection:
        """Applies the options."""
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return best_of_n.select(scores, groups=groups, name=name, **options)


@dataclasses.dataclass(frozen=True)
class SelectedFiles:
    """The files that `select_files` wrote, and counts.

    Attributes:
      manifest, chosen, refused, summary: paths; `chosen` is None if it was not requested.
      candidates, selected, groups: counts of those that were scored.
      threshold: lowest value of the key that was kept; None: neither a threshold nor a quantile was requested.
      scoring: counts of the scoring, refused ones among them.
      prefix: of the fields that the manifest adds; "" unless a candidate has a field of such a name.
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
    prefix: str = ""


@renamed.arguments(choice="options")
def select_files(
    model: str | os.PathLike,
    candidates: str | os.PathLike,
    out: str | os.PathLike,
    options: SelectionOptions = SelectionOptions(),
    *,
    chosen: str | os.PathLike | None = None,
    batch_size: int = 16,
    block_size: int = 1024,
    restart: bool = False,
    progress: bool = False,
    load: Callable[[str], Any] | None = None,
    images_from: Sequence[str] = (),
) -> SelectedFiles:
    """Scores the candidates of a JSONL file, selects among them, and writes the manifest.

    Args:
      model: run directory, checkpoint directory or exported file.
      candidates: one JSON object per line with `image` (path, relative to the file's folder), `prompt`, and
        optionally `group` (text or whole number; the prompt, if there is none). Other fields are kept.
      out: the manifest: each scored candidate with its own fields and `line`, `scores`, `selected`, `rank` in its
        group, `gap` to the second of it, `reason`, `prompt_cut` and `model`. In the order of the candidates. If a
        candidate has a field of one of these names, its own is kept, and all of ours get the prefix ``rahf_``.
      options: of the selection.
      chosen: also write the selected lines alone, unchanged; for training.
      batch_size, block_size, restart, progress, load: as in `rahf.scoring.score`.
      images_from: as in `rahf.scoring.ReadOptions`.

    Returns:
      Paths and counts. Equal input gives equal bytes, interrupted or not.

    Raises:
      NotPredicted: the model does not predict the deciding score, or one that is required.
      ValueError: a wrong option, a file that would be overwritten, or no candidate that can be scored.
      OSError: something cannot be read or written.
    """
    options.check()
    paths = _paths(candidates, out, chosen)
    load = functools.partial(_load_checked, load or loading.load, options)
    scores_folder = paths["manifest"].with_suffix(".scores")
    read_options = ReadOptions(images_from=tuple(images_from))
    summary = scoring.score(
        model,
        [os.fspath(candidates)],
        scores_folder,
        options=read_options,
        batch_size=batch_size,
        block_size=block_size,
        restart=restart,
        progress=progress,
        load=load,
    )
    if not summary.scored:
        why = f"{scores_folder}/refused.jsonl"
        raise ScoreError(f"{candidates}: none of {summary.rows} candidates can be scored; see {why}")
    job = Job(os.path.abspath(scores_folder), read_options, batch_size)
    lines, groups, scores = _read(job, summary)
    best_of_n.check_predicted(scores, options.deciding)
    selection = options.select(scores, groups, lambda index: f"line {lines[index]}")
    prefix = _prefix(candidates, job, summary)
    _write(paths, candidates, job, summary, scores, selection, prefix)
    _write_refused(paths["refused"], scores_folder)
    selected = SelectedFiles(
        paths["manifest"],
        paths.get("chosen"),
        paths["refused"],
        paths["summary"],
        len(scores),
        len(selection.indices),
        len(set(groups)),
        selection.threshold,
        summary,
        prefix,
    )
    files.write(str(paths["summary"]), _summary(selected, options))
    return selected


def _load_checked(load: Callable[[str], Any], options: SelectionOptions, model: str) -> Any:
    """The critic, if it predicts the scores that decide: nothing is scored in vain. Raises NotPredicted."""
    critic = load(model)
    if (outputs := getattr(critic, "outputs", None)) is not None:
        for name in options.deciding:
            outputs.check_score(name)
    return critic


def _paths(candidates, out, chosen) -> dict[str, pathlib.Path]:
    out = pathlib.Path(out).absolute()
    paths = {
        "manifest": out,
        "refused": out.with_suffix(".refused.jsonl"),
        "summary": out.with_suffix(".summary.json"),
    }
    if chosen is not None:
        paths["chosen"] = pathlib.Path(chosen).absolute()
    distinct = [os.path.realpath(candidates), *map(os.path.realpath, paths.values())]
    if len(set(distinct)) < len(distinct):
        raise ScoreError(f"{out}: the candidates, the manifest and what lies beside it must be different files")
    if files.is_url(os.fspath(candidates)) or not os.fspath(candidates).lower().endswith(".jsonl"):
        raise ScoreError(f"{candidates}: expected a local file of candidates whose name ends in .jsonl")
    return paths


def _read(job: Job, summary: ScoringSummary) -> tuple[np.ndarray, list[int], np.ndarray]:
    """Line numbers, groups (as numbers) and scores [N,4] of scored candidates; only these are held in memory."""
    lines: list[int] = []
    groups: list[int] = []
    numbers: dict[tuple[bool, str], int] = {}
    scores = np.full((summary.scored, len(SCORES)), np.nan)
    for _, _, batch in job.rows(summary.blocks, ("row", "group", "own_group", *SCORES, "error")):
        batch = batch.filter(batch["error"].is_null())
        start = len(lines)
        lines += batch["row"].to_pylist()
        for name, own in zip(batch["group"].to_pylist(), batch["own_group"].to_pylist()):
            key = own, unicodedata.normalize("NFC", name) if own else same_prompt(name)
            groups.append(numbers.setdefault(key, len(numbers)))
        for at, name in enumerate(SCORES):
            scores[start : len(lines), at] = batch[name].to_numpy(zero_copy_only=False)
    return np.array(lines), groups, np.round(scores, 6)


def _prefix(candidates, job: Job, summary: ScoringSummary) -> str:
    """A prefix with which none of our fields has the name of a candidate's own field."""
    taken: set[str] = set()
    for line, _, _, _ in _scored_lines(candidates, job, summary):
        taken |= {name for name in parse(line) if name.endswith(FIELDS)}
    prefixes = itertools.chain(("", "rahf_"), (f"rahf{number}_" for number in itertools.count(2)))
    return next(prefix for prefix in prefixes if not taken & {prefix + name for name in FIELDS})


def _write(
    paths, candidates, job: Job, summary: ScoringSummary, scores: np.ndarray, selection: Selection, prefix: str
) -> None:
    """The manifest, line by line, and the selected lines alone."""
    kept = set(selection.indices.tolist())
    with contextlib.ExitStack() as stack:
        manifest = stack.enter_context(open_atomically(paths["manifest"]))
        chosen = stack.enter_context(open_atomically(paths["chosen"])) if "chosen" in paths else None
        for index, (line, row, cut, model) in enumerate(_scored_lines(candidates, job, summary)):
            gap = selection.gap[index]
            values = (
                row,
                {name: None if np.isnan(score) else float(score) for name, score in zip(SCORES, scores[index])},
                index in kept,
                int(selection.rank[index]) or None,
                None if np.isnan(gap) else round(float(gap), 6),
                selection.reasons[index],
                cut,
                model,
            )
            entry = parse(line) | {prefix + name: value for name, value in zip(FIELDS, values, strict=True)}
            manifest.write((json.dumps(entry, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))
            if chosen is not None and index in kept:
                chosen.write(line.rstrip(b"\r\n") + b"\n")


def _scored_lines(candidates, job: Job, summary: ScoringSummary) -> Iterator[tuple[bytes, int, bool, str]]:
    """The lines that were scored, in order, with their numbers, whether the prompt was cut, and the model."""
    with open_regular(candidates) as file:
        lines = blocks.lines(file)
        for _, model, batch in job.rows(summary.blocks, ("row", "prompt_cut", "error")):
            for scored in batch.to_pylist():
                if scored["error"] is None:
                    line = next(line for number, _, line in lines if number == scored["row"])
                    yield line, scored["row"], scored["prompt_cut"], model


def _write_refused(path: pathlib.Path, scores_folder: pathlib.Path) -> None:
    refused = [json.loads(line) for line in read_regular(scores_folder / "refused.jsonl").splitlines()]
    lines = [json.dumps({"line": one["row"], "image": one["key"], "reason": one["error"]}) for one in refused]
    files.write(str(path), "".join(line + "\n" for line in lines).encode())


def _summary(selected: SelectedFiles, options: SelectionOptions) -> bytes:
    document = {
        "model": selected.scoring.model,
        "prefix": selected.prefix,
        "choice": dataclasses.asdict(options),
        "ties": "the earlier line; scores are compared at six decimals",
        "threshold": selected.threshold,
        "candidates": selected.candidates,
        "groups": selected.groups,
        "selected": selected.selected,
        "refused": selected.scoring.refused,
        "prompts_cut": selected.scoring.prompts_cut,
    }
    return (json.dumps(document, indent=2) + "\n").encode()


__getattr__ = renamed.moved(
    __name__,
    {
        "Choice": f"{__name__}:SelectionOptions",
        "Chosen": f"{__name__}:SelectedFiles",
        "choose": f"{__name__}:select_files",
    },
)
