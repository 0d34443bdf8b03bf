"""How many labels of each kind a run has learned from, kept beside its parameters.

A network has a head for every label, whether or not the data have such labels. A head that never saw one is as random
as at its start, and nothing in its output shows that. So a run counts, and what loads it knows which outputs mean
something.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence

from rahf.core import json_text
from rahf.core.errors import CheckpointError
from rahf.core.files import read_regular, write_atomically

FILE = "label_counts.json"

#: Number of labels by name, as of `Task.label_counts`. None: learned from some before they were counted.
Counts = dict[str, int | None]


def read(run: pathlib.Path) -> Counts:
    """The counts of a run or model directory; empty for one of a version that did not count.

    Raises:
      CheckpointError: the file is damaged.
    """
    file = run / FILE
    try:
        counts = json_text.parse_object(read_regular(file))
        if not all(count is None or type(count) is int and count >= 0 for count in counts.values()):
            raise ValueError("expected numbers by name")
        return counts
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{file}: damaged ({error}); restore it from a copy, or remove it: then all outputs "
                              "of the model count as learned") from error  # fmt: skip


def write(run: pathlib.Path, counts: Mapping[str, int | None]) -> None:
    """Writes the counts into a run or model directory."""
    write_atomically(run / FILE, json.dumps(dict(counts), indent=1) + "\n")


def added(counts: Counts, more: Sequence[Mapping[str, int]]) -> Counts:
    """The counts with those of more steps; what is None stays None."""
    names = dict.fromkeys([*counts, *(name for step in more for name in step)])
    sums = {name: sum(int(step.get(name, 0)) for step in more) for name in names}
    return {name: None if counts.get(name, 0) is None else counts.get(name, 0) + sums[name] for name in names}
