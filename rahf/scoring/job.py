"""A folder of scored blocks: what it belongs to, which blocks are done, and how one is done.

job.json              inputs, blocks and options; another job is refused
part-00000.parquet    one block each, written under another name and then renamed
refused.jsonl         every record that could not be scored, with the reason
summary.json          counts and the model, when all is done
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rahf.core.batch import SCORES
from rahf.core.errors import ScoreError
from rahf.core.files import UNFINISHED
from rahf.scoring import files, score_block
from rahf.scoring.blocks import Block, Plan
from rahf.scoring.records import Reading

_FORMAT = 1
_PART = re.compile(r"part-(\d{5,})\.parquet")
_MODEL_KEY = b"rahf.model"
_OURS = ("job.json", "refused.jsonl", "summary.json")


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a finished job holds.

    Attributes:
      out: its folder.
      model: id of the model that scored.
      blocks, rows, scored, refused: counts; rows = scored + refused.
      prompts_cut: scored rows whose prompt the network does not read wholly.
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
    """A folder, and how its blocks are to be scored. Plain values: it travels to any machine."""

    out: str
    reading: Reading
    batch_size: int

    def begin(self, plan: Plan, restart: bool = False) -> list[Block]:
        """Makes the folder, or finds what is done in it.

        Returns:
          The blocks that are still to be scored.

        Raises:
          ScoreError: the folder belongs to another job. Files of other names are left alone.
        """
        ours = {
            "format": _FORMAT,
            "scores": list(SCORES),
            "blocks": len(plan.blocks),
            "plan": plan.digest,
            "batch_size": self.batch_size,
            **dataclasses.asdict(self.reading),
        }
        there = files.listing(self.out)
        if restart:
            there = self._clear(there)
        if "job.json" in there:
            self._compare(ours)
        elif any(_PART.fullmatch(name) or name in _OURS for name in there):
            raise ScoreError(f"{self.out}: has parts of a job but no job.json; give another folder")
        else:
            files.write(self._path("job.json"), _json(ours))
        for name in there:
            if name.endswith(UNFINISHED):
                files.remove(self._path(name))
        done = {int(found[1]) for name in there if (found := _PART.fullmatch(name))}
        return [block for block in plan.blocks if block.number not in done]

    def _clear(self, there: Sequence[str]) -> list[str]:
        """Removes what jobs write, and nothing else; the description last, so that a break leaves no orphans."""
        if "job.json" not in there:
            return list(there)
        ours = [name for name in there if _PART.fullmatch(name) or name.endswith(UNFINISHED)]
        ours += [name for name in reversed(_OURS) if name in there]
        for name in ours:
            files.remove(self._path(name))
        return [name for name in there if name not in ours]

    def _compare(self, ours: dict[str, Any]) -> None:
        try:
            theirs = dict(json.loads(files.read(self._path("job.json"), 1_000_000)))
        except (ValueError, TypeError) as error:
            raise ScoreError(f"{self._path('job.json')}: damaged; start again with --restart") from error
        differing = [name for name in ours if ours[name] != theirs.get(name)]
        if differing:
            said = ", ".join({"plan": "the inputs or the block size"}.get(name, name) for name in differing)
            raise ScoreError(
                f"{self.out}: holds scores of another job ({said} differ); give another folder, or --restart to "
                "throw them away"
            )

    def score(self, critic: Any, block: Block, expected: str | None = None) -> tuple[str, int, int]:
        """Scores a block and writes its part.

        Args:
          critic: see `rahf.scoring.score_block.score_block`.
          block: which one.
          expected: id of the model that the job was begun with; None: not known yet.

        Returns:
          Id of the model, number of rows, and of those without scores.

        Raises:
          ScoreError: another model.
          OSError: something cannot be read or written.
        """
        model = str(getattr(critic, "model_id", "unknown"))
        if expected is not None and model != expected:
            raise ScoreError(
                f"{self.out}: was begun with the model {expected}, but this is {model}; their scores do not compare. "
                "Give another folder, or --restart to throw its scores away"
            )
        scored = list(score_block.score_block(critic, block, self.reading, self.batch_size))
        table = score_block.table(scored, block.source).replace_schema_metadata({_MODEL_KEY: model.encode()})
        files.write(self.part(block.number), files.parquet_bytes(table))
        return model, len(scored), sum(one.scores is None for one in scored)

    def part(self, number: int) -> str:
        """Path of the part of a block."""
        return self._path(f"part-{number:05d}.parquet")

    def model(self, count: int) -> str | None:
        """Id of the model that the first finished block was scored with; None: no block is finished."""
        names = set(files.listing(self.out))
        for number in range(count):
            if f"part-{number:05d}.parquet" in names:
                with self._open(number) as part:
                    return _model(part)
        return None

    def rows(self, count: int, columns: Sequence[str]) -> Iterator[tuple[int, str, Any]]:
        """Number of the block, id of its model, and pieces of its table, in order; never more than a piece at once."""
        for number in range(count):
            with self._open(number) as part:
                for batch in part.iter_batches(4096, columns=list(columns)):
                    yield number, _model(part), batch

    def _open(self, number: int) -> Any:
        import pyarrow

        try:
            return files.parquet_file(self.part(number))
        except FileNotFoundError:
            raise
        except (pyarrow.ArrowException, OSError) as error:
            raise ScoreError(f"{self.part(number)}: damaged ({error}); delete it, and start the job again") from error

    def finish(self, count: int) -> Summary:
        """Counts, writes ``refused.jsonl`` and ``summary.json``.

        Raises:
          ScoreError: the blocks were scored with different models.
        """
        models: dict[str, int] = {}
        rows = cut = 0
        refused: list[bytes] = []
        for number, model, batch in self.rows(count, ("source", "row", "key", "error", "prompt_cut")):
            models.setdefault(model, number)
            rows += batch.num_rows
            cut += sum(batch["prompt_cut"].to_pylist())
            bad = batch.filter(batch["error"].is_valid()).select(["source", "row", "key", "error"])
            refused += [(json.dumps(one) + "\n").encode() for one in bad.to_pylist()]
        if len(models) > 1:
            said = " and ".join(f"{model} (from part {number} on)" for model, number in models.items())
            raise ScoreError(f"{self.out}: scored by different models, {said}; start again with --restart")
        scored = rows - len(refused)
        summary = Summary(self.out, next(iter(models), "unknown"), count, rows, scored, len(refused), cut)
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
    """Scores blocks one after the other in this process. `done` is told the rows of each and those refused."""
    critic = load() if blocks else None
    for block in blocks:
        expected, rows, refused = job.score(critic, block, expected)
        done(rows, refused)


def _model(part: Any) -> str:
    return (part.schema_arrow.metadata or {}).get(_MODEL_KEY, b"unknown").decode()


def _json(tree: dict[str, Any]) -> bytes:
    return (json.dumps(tree, indent=2) + "\n").encode()
