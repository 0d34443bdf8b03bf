"""A folder of scored blocks: which job it belongs to, which blocks are finished, and how a block is finished.

job.json              inputs, blocks and options; another job is refused
part-00000.parquet    one block each, written under a temporary name and then renamed
refused.jsonl         every record that could not be scored, with the reason
summary.json          counts and the model, when all blocks are finished
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow

from rahf.core import json_text
from rahf.core.batch import SCORES
from rahf.core.errors import ScoreError
from rahf.core.files import UNFINISHED
from rahf.critic.provenance import weights_hash
from rahf.scoring import files, score_block
from rahf.scoring.blocks import Block
from rahf.scoring.fields import ReadOptions
from rahf.scoring.plan import BlockPlan

#: Version of the folder's layout. 2 stores sizes and times of change in the plan; by 1 changed inputs went unnoticed.
_FORMAT = 2
_PART = re.compile(r"part-(\d{5,})\.parquet")
_MODEL_KEY = b"rahf.model"
_JOB_FILES = ("job.json", "refused.jsonl", "summary.json")


@dataclasses.dataclass(frozen=True)
class ScoringSummary:
    """Counts of a finished job.

    Attributes:
      out: its folder.
      model: id of the model that scored its pictures.
      blocks, rows, scored, refused: counts; rows = scored + refused.
      prompts_cut: scored rows of which the network does not read the end of the prompt.
    """

    out: str
    model: str
    blocks: int
    rows: int
    scored: int
    refused: int
    prompts_cut: int


@dataclasses.dataclass(frozen=True)
class Job:
    """A folder, and how its blocks are to be scored. Plain values, which any machine can read."""

    out: str
    options: ReadOptions
    batch_size: int

    def begin(self, plan: BlockPlan, restart: bool = False, alone: bool = True) -> list[Block]:
        """Creates the folder, or finds the finished blocks in it. Leaves files of other names alone.

        Args:
          plan: all blocks of the job.
          restart: first remove what an earlier job wrote.
          alone: whether no other process can be writing there. Else unfinished parts are left alone, for they may grow.

        Returns:
          The blocks that are still to be scored.

        Raises:
          ScoreError: the folder belongs to another job.
        """
        description = {
            "format": _FORMAT,
            "scores": list(SCORES),
            "blocks": len(plan.blocks),
            "plan": plan.digest,
            "batch_size": self.batch_size,
            **dataclasses.asdict(self.options),
        }
        names = files.listing(self.out)
        if restart:
            names = self._clear(names)
        if "job.json" in names:
            self._compare(description)
        elif any(_PART.fullmatch(name) or name in _JOB_FILES for name in names):
            raise ScoreError(f"{self.out}: has parts of a job but no job.json; give another folder")
        else:
            files.write(self._path("job.json"), _json(description))
        for name in names if alone else ():
            if name.endswith(UNFINISHED):
                files.remove(self._path(name))
        finished = {int(part[1]) for name in names if (part := _PART.fullmatch(name))}
        return [block for block in plan.blocks if block.number not in finished]

    def _clear(self, names: Sequence[str]) -> list[str]:
        """Removes the files of a job and no others; returns the names that are left.

        Removes job.json last: should the process be killed before, the next restart still recognises the parts.
        """
        if "job.json" not in names:
            return list(names)
        removed = [name for name in names if _PART.fullmatch(name) or name.endswith(UNFINISHED)]
        removed += [name for name in reversed(_JOB_FILES) if name in names]
        for name in removed:
            files.remove(self._path(name))
        return [name for name in names if name not in removed]

    def _compare(self, description: dict[str, Any]) -> None:
        try:
            stored = json_text.parse_object(files.read(self._path("job.json"), 1_000_000))
        except ValueError as error:
            raise ScoreError(f"{self._path('job.json')}: damaged; start again with --restart") from error
        if stored.get("format") == 1:
            raise ScoreError(
                f"{self.out}: was begun by an earlier version, which did not notice changed inputs; give another "
                "folder, or --restart to score again"
            )
        description = json.loads(_json(description))
        differing = [name for name, value in description.items() if value != stored.get(name)]
        if differing:
            what = ", ".join({"plan": "the inputs or the block size"}.get(name, name) for name in differing)
            hint = " (a file counts as changed if its size or time of change is another)" if "plan" in differing else ""
            raise ScoreError(
                f"{self.out}: holds scores of another job ({what} differ); give another folder, or --restart to "
                f"throw them away{hint}"
            )

    def score(self, critic: Any, block: Block, expected: str | None = None) -> tuple[str, int, int]:
        """Scores a block and writes its part.

        Args:
          critic: see `rahf.scoring.score_block.score_block`.
          block: the block.
          expected: id of the model that scored the finished blocks; None: there are none.

        Returns:
          Id of the model, number of rows, and number of rows without scores.

        Raises:
          ScoreError: another model.
          OSError: something cannot be read or written.
        """
        model = str(getattr(critic, "model_id", "unknown"))
        if expected is not None and weights_hash(model) != weights_hash(expected):
            raise ScoreError(
                f"{self.out}: was begun with the model {expected}, but this is {model}; their scores do not compare. "
                "Give another folder, or --restart to throw its scores away"
            )
        scored = list(score_block.score_block(critic, block, self.options, self.batch_size))
        table = score_block.table(scored, block.source).replace_schema_metadata({_MODEL_KEY: model.encode()})
        files.write(self.part(block.number), files.parquet_bytes(table))
        return model, len(scored), sum(row.scores is None for row in scored)

    def part(self, number: int) -> str:
        """Path of the part of a block."""
        return self._path(f"part-{number:05d}.parquet")

    def model(self, count: int) -> str | None:
        """Id of the model that scored the first finished block; None: no block is finished."""
        names = set(files.listing(self.out))
        for number in range(count):
            if f"part-{number:05d}.parquet" in names:
                with self._open(number) as part:
                    return _model(part)
        return None

    def rows(self, count: int, columns: Sequence[str]) -> Iterator[tuple[int, str, Any]]:
        """Yields the rows of all blocks in order, in pieces: number of the block, id of its model, rows."""
        for number in range(count):
            with self._open(number) as part:
                for batch in part.iter_batches(4096, columns=list(columns)):
                    yield number, _model(part), batch

    def _open(self, number: int) -> Any:
        try:
            return files.parquet_file(self.part(number))
        except FileNotFoundError:
            raise
        except (pyarrow.ArrowException, OSError) as error:
            raise ScoreError(f"{self.part(number)}: damaged ({error}); delete it, and start the job again") from error

    def finish(self, count: int) -> ScoringSummary:
        """Counts the rows, writes ``refused.jsonl`` and ``summary.json``.

        Raises:
          ScoreError: the blocks were scored with different models.
        """
        models: dict[str, tuple[str, int]] = {}  # id and first part, by the hash of the weights
        rows = cut = 0
        refused: list[bytes] = []
        for number, model, batch in self.rows(count, ("source", "row", "key", "error", "prompt_cut")):
            models.setdefault(weights_hash(model), (model, number))
            rows += batch.num_rows
            cut += sum(batch["prompt_cut"].to_pylist())
            errors = batch.filter(batch["error"].is_valid()).select(["source", "row", "key", "error"])
            refused += [(json.dumps(row) + "\n").encode() for row in errors.to_pylist()]
        if len(models) > 1:
            names = " and ".join(f"{model} (from part {number} on)" for model, number in models.values())
            raise ScoreError(f"{self.out}: scored by different models, {names}; start again with --restart")
        scored = rows - len(refused)
        summary = ScoringSummary(
            self.out, next(iter(models.values()), ("unknown",))[0], count, rows, scored, len(refused), cut
        )
        files.write(self._path("refused.jsonl"), b"".join(refused))
        counts = {name: value for name, value in dataclasses.asdict(summary).items() if name != "out"}
        files.write(self._path("summary.json"), _json(counts))
        return summary

    def _path(self, name: str) -> str:
        return files.join(self.out, name)


def run_local(
    job: Job,
    blocks: Sequence[Block],
    load: Callable[[], Any],
    expected: str | None,
    done: Callable[[int, int], None],
) -> None:
    """Scores blocks one after the other in this process; calls `done` with the rows and the refused rows of each."""
    critic = load() if blocks else None
    for block in blocks:
        expected, rows, refused = job.score(critic, block, expected)
        done(rows, refused)


def _model(part: Any) -> str:
    return (part.schema_arrow.metadata or {}).get(_MODEL_KEY, b"unknown").decode(errors="replace")


def _json(tree: dict[str, Any]) -> bytes:
    return (json.dumps(tree, indent=2) + "\n").encode()
