"""`score`: very many pictures, block by block, in this process or by the actors of a Ray cluster."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from rahf.core import terminal
from rahf.core.errors import ScoreError
from rahf.critic import loading
from rahf.scoring import files
from rahf.scoring import plan as planning
from rahf.scoring.fields import ReadOptions
from rahf.scoring.job import Job, ScoringSummary, run_local
from rahf.text import prompts

RUNNERS = ("local", "ray")


def score(
    model: str | os.PathLike,
    inputs: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    runner: str = "local",
    options: ReadOptions = ReadOptions(),
    batch_size: int = 16,
    block_size: int = 1024,
    restart: bool = False,
    progress: bool = False,
    load: Callable[[str], Any] | None = None,
    cluster: dict[str, Any] | None = None,
) -> ScoringSummary:
    """Scores pictures and writes one parquet file per block. Skips blocks that are finished.

    Both runners cut the input into the same blocks and score a block in the same way, so they write the same files.
    A job that was interrupted and restarted writes the same files, too: a killed process loses only the block that it
    was scoring.

    Args:
      model: run directory, checkpoint directory or exported file. With Ray every node must see the directory; an
        exported file is sent to the nodes.
      inputs: JSONL files (image, prompt, optional group; paths relative to the file), parquet files, webdataset
        shards, folders of shards, folders of pictures with a .txt beside each; paths, URLs or patterns.
      out: folder for part-*.parquet, refused.jsonl and summary.json; a path or URL that every node can write to.
      runner: "local", or "ray".
      options: prompt of all pictures, names of columns, and where the pictures may lie that data name.
      batch_size: pictures per step of the network.
      block_size: records per block, for lines and folders. A row group and a tar shard are one block each.
      restart: first remove what an earlier job wrote to `out`.
      progress: show a bar on stderr.
      load: loads the critic from the path `model`; None: `rahf.load`.
      cluster: keyword arguments of `rahf.scoring.ray_runner.run`: workers, cpus, gpus, address.

    Returns:
      Counts. A record that cannot be scored is counted as refused and does not stop the job.

    Raises:
      ScoreError: an input does not exist, `out` lies in an input, or belongs to another job or another model.
      FolderInUse: another process writes to `out`.
      ArgumentError: the prompt is empty, or the path of a file.
      OSError: something cannot be read or written.
    """
    if runner not in RUNNERS:
        raise ScoreError(f"runner: expected {' or '.join(RUNNERS)}, found {runner!r}")
    if batch_size < 1:
        raise ScoreError(f"batch size: expected at least 1, found {batch_size}")
    if not inputs:
        raise ScoreError("no inputs: give JSONL or parquet files, webdataset shards, or folders")
    if options.prompt is not None:
        prompts.check_prompt(options.prompt, "--prompt", "leave it out to read the prompt of each picture")
    inputs = [os.fspath(path) for path in inputs]
    out = files.absolute(out)
    planning.check_out(inputs, out)
    plan = planning.plan(inputs, block_size, options)
    job = Job(out, options, batch_size)
    # A name that is no path here is left to `load`, as `rahf.load` takes more than paths.
    path = os.path.abspath(model) if os.path.exists(model) else os.fspath(model)
    load = load or loading.load  # loads JAX only in the process that scores
    with files.locked(out) as alone:
        todo = job.begin(plan, restart, alone)
        expected = job.model(len(plan.blocks))
        with _Bar(len(plan.blocks), len(plan.blocks) - len(todo), progress) as bar:
            if runner == "ray":
                from rahf.scoring import ray_runner  # Ray is optional

                ray_runner.run(job, todo, path, load, expected, bar.advance, **(cluster or {}))
            else:
                run_local(job, todo, functools.partial(load, path), expected, bar.advance)
        return job.finish(len(plan.blocks))


class _Bar:
    """A progress bar of finished blocks on stderr; invisible where stderr is not a terminal."""

    def __init__(self, total: int, done: int, shown: bool):
        console = terminal.console(stderr=True)
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
        """Counts one more finished block."""
        self._rows, self._refused = self._rows + rows, self._refused + refused
        self._bar.update(self._task, advance=1, rows=self._rows, refused=self._refused)
