"""Scores very many pictures: `rahf score`. Blocks are scored here, or by the actors of a Ray cluster."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

from rahf.core.errors import ScoreError
from rahf.scoring import blocks as blocks_lib
from rahf.scoring import files
from rahf.scoring.job import Job, Summary, run_local
from rahf.scoring.records import Reading

RUNNERS = ("local", "ray")


def score(
    model: str | os.PathLike,
    inputs: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    runner: str = "local",
    reading: Reading = Reading(),
    batch_size: int = 16,
    block_size: int = 1024,
    restart: bool = False,
    progress: bool = False,
    load: Callable[[str], Any] | None = None,
    cluster: dict[str, Any] | None = None,
) -> Summary:
    """Scores pictures and writes parquet files, block by block; what is done is not done again.

    Both runners cut the input into the same blocks and score a block in the same way, so they write the same files.
    Interrupted and restarted, a job ends with the same files, too: of a killed process only the block is lost that
    it was at.

    Args:
      model: run directory, checkpoint directory or exported file. With Ray it must be there on every node; an
        exported file is sent to them.
      inputs: JSONL files (image, prompt, optional group; paths relative to the file), parquet files, webdataset
        shards, folders of shards, folders of pictures with a .txt beside each; paths, URLs or patterns.
      out: folder for part-*.parquet, refused.jsonl and summary.json; a path or URL that every node can write to.
      runner: "local", or "ray".
      reading: prompt of all pictures, names of columns.
      batch_size: pictures per step of the network.
      block_size: records per block, for lines and folders. A row group and a tar shard are one block each.
      restart: throw away what is in `out`.
      progress: show a bar on stderr.
      load: makes the critic from `model`; None: `rahf.load`.
      cluster: keyword arguments of `rahf.scoring.ray_runner.run`: workers, cpus, gpus, address.

    Returns:
      Counts. Records that cannot be scored are among them and never stop the job.

    Raises:
      ScoreError: inputs that are not there, an `out` of another job or another model.
      OSError: something cannot be read or written.
    """
    if runner not in RUNNERS:
        raise ScoreError(f"runner: expected {' or '.join(RUNNERS)}, found {runner!r}")
    if batch_size < 1:
        raise ScoreError(f"batch size: expected at least 1, found {batch_size}")
    if not inputs:
        raise ScoreError("no inputs: give JSONL or parquet files, webdataset shards, or folders")
    plan = blocks_lib.plan([os.fspath(one) for one in inputs], block_size)
    job = Job(files.absolute(out), reading, batch_size)
    todo = job.begin(plan, restart)
    expected = job.model(len(plan.blocks))
    path = files.absolute(model)
    with _Bar(len(plan.blocks), len(plan.blocks) - len(todo), progress) as bar:
        if runner == "ray":
            from rahf.scoring import ray_runner

            ray_runner.run(job, todo, path, load, expected, bar.advance, **(cluster or {}))
        else:
            run_local(job, todo, functools.partial(load or load_critic, path), expected, bar.advance)
    return job.finish(len(plan.blocks))


def load_critic(path: str) -> Any:
    """`rahf.load`, later: JAX starts only in the process that scores."""
    import rahf

    return rahf.load(path)


class _Bar:
    """Blocks that are done, on a terminal; to a file, nothing."""

    def __init__(self, total: int, done: int, shown: bool):
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
        extra = "{task.fields[rows]} pictures, {task.fields[refused]} refused"
        hidden = not (shown and console.is_terminal)
        self._bar = Progress(*columns, extra, console=console, disable=hidden, transient=True)
        self._task = self._bar.add_task("scoring blocks", total=total, completed=done, rows=0, refused=0)
        self._rows = self._refused = 0

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def advance(self, rows: int, refused: int) -> None:
        """One more block is done."""
        self._rows, self._refused = self._rows + rows, self._refused + refused
        self._bar.update(self._task, advance=1, rows=self._rows, refused=self._refused)
