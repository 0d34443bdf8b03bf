"""Progress bars of a preparation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import rich.console
import rich.progress

from data_pipelines import store

#: Called with the name of the work, how much is done, and how much there is.
Advance = Callable[[str, int, int], None]


@contextlib.contextmanager
def progress_bars(console: rich.console.Console) -> Iterator[Advance]:
    """Progress bars, one per kind of work; none if the console is quiet."""
    tasks: dict[str, rich.progress.TaskID] = {}
    store.load_writer()
    columns = (*rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn())
    with rich.progress.Progress(*columns, console=console, disable=console.quiet) as bars:

        def advance(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done, total=max(done, total))

        yield advance
