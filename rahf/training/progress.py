"""Progress of a run: a live line in the terminal, `metrics.jsonl`, TensorBoard events."""

from __future__ import annotations

import contextlib
import json
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rahf.core import json_text, names, terminal
from rahf.core.files import disk_full_named, read_regular, write_atomically
from rahf.training.events import EventFile

_MOST_STEPS = 1 << 53  # what a float counts exactly
_LARGEST = 1e100  # far above what float32 holds; larger numbers cannot be drawn


class Reporter:
    """Writes metrics to the terminal, `metrics.jsonl` and TensorBoard; silent on all processes but the first."""

    def __init__(self, workdir: pathlib.Path, steps: int, start: int, active: bool = True):
        """Opens the files of a run, dropping rows that a resumed run is going to write again."""
        self.active, self.steps = active, steps
        self.console = terminal.console(quiet=not active)
        self._progress = None
        if not active:
            return
        self._file = workdir / "metrics.jsonl"
        _drop_after(self._file, start)
        self._rows = open(self._file, "a", encoding="utf-8")
        self._events = EventFile(workdir / "tensorboard", start)
        if sys.stdout.isatty():
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._task = self._progress.add_task("training", total=steps, completed=start)
            self._progress.start()
        self._clock = time.perf_counter()
        self._begin, self._since = start, start

    def train(self, step: int, values: dict[str, float], examples: int) -> None:
        """A log point: losses of the last steps and speed. A loss without labels is NaN and shown as a dash.

        Args:
          examples: their number since the last point.
        """
        if not self.active:
            return
        now = time.perf_counter()
        rate = examples / max(now - self._clock, 1e-9)
        per_step = (now - self._clock) / max(step - self._since, 1)
        self._clock, self._since = now, step
        self.write(step, values | {"images_per_second": rate})
        losses = "  ".join(
            f"{name.removeprefix('loss/')} {'–' if value != value else format(value, '.4f')}"
            for name, value in values.items()
            if name.startswith("loss/")
        )
        left = _duration((self.steps - step) * per_step)
        if self._progress:
            self._progress.update(self._task, completed=step, description=f"{losses}  {rate:.0f} images/s")
        else:
            line = f"step {step}/{self.steps}  {losses}  {rate:.0f} images/s  {left} left"
            self.console.print(line, markup=False, soft_wrap=True)

    def pause(self) -> None:
        """Call after an evaluation or a checkpoint: its time does not count as training time."""
        self._clock = time.perf_counter()

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(names.printable(text), soft_wrap=True)

    def write(self, step: int, values: dict[str, float]) -> None:
        """A row of `metrics.jsonl`, and one TensorBoard scalar for each value. NaN becomes null. Raises DiskFull."""
        if not self.active:
            return
        row: dict[str, Any] = {"step": step, "time": round(time.time(), 3)}
        row |= {n: v if v == v and abs(v) != float("inf") else None for n, v in values.items()}
        with disk_full_named(self._file):
            self._rows.write(json.dumps(row) + "\n")
            self._rows.flush()
        self._events.scalars({name: value for name, value in values.items() if value == value}, step)

    def close(self) -> None:
        """Ends the live line and closes the files."""
        if not self.active:
            return
        if self._progress:
            self._progress.stop()
        with contextlib.suppress(OSError):  # what could not be written was an error before
            self._rows.close()
        self._events.close()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def read_rows(file: pathlib.Path) -> list[dict[str, Any]]:
    """Rows of a `metrics.jsonl`. A line that a crash has cut off, or an editor has damaged, is left out.

    Returns:
      Each row has its ``step``, an integer; its other values are floats, or None.
    """
    return [row for _, row in _read_lines(file)]


def _read_lines(file: pathlib.Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The usable lines of a `metrics.jsonl`, as they are and parsed."""
    if not file.exists():
        return
    for line in read_regular(file).splitlines():
        try:
            row = json_text.parse_object(line)
        except ValueError:
            continue
        step = row.get("step")
        if isinstance(step, int) and not isinstance(step, bool) and 0 <= step < _MOST_STEPS:
            yield line, {"step": step} | {name: _value(value) for name, value in row.items() if name != "step"}


def _value(value: Any) -> float | None:
    number = json_text.finite(value)
    return None if number is None or abs(number) > _LARGEST else number


def _drop_after(file: pathlib.Path, step: int) -> None:
    """Removes rows beyond the step that a run resumes from, so that no step appears twice."""
    if not file.exists():
        return
    kept = [line for line, row in _read_lines(file) if row["step"] <= step]
    write_atomically(file, b"".join(line + b"\n" for line in kept))
