"""Saliency models by kinds of training: a row for each kind, means over its seeds, and paired differences to the first.

    python benchmarks/saliency_table.py --data data/osie --kinds none=runs/n-0,runs/n-1 flips=runs/f-0,runs/f-1

Every model is measured as by `rahf evaluate`, on the same pictures. A difference is the mean over seeds of a picture's
metric minus that of the first kind; its interval is that of resampled pictures.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile

import numpy as np
import tyro
from rich.console import Console

from rahf.metrics.saliency import PER_PICTURE
from rahf.saliency import report

#: Columns of the table.
SHOWN = ("cc", "kld", "sim", "nss", "auc_judd", "sauc", "information_gain")


@dataclasses.dataclass(frozen=True)
class Options:
    """Measures saliency models."""

    data: str  # of `rahf prepare saliency` or `rahf prepare synthetic --viewers N`
    kinds: tuple[str, ...]  # NAME=RUN,RUN,…: one run for each seed
    split: str = "test"
    limit: int | None = None  # only the first so many pictures
    batch_size: int = 8
    resamples: int = 2000


def interval(values: np.ndarray, resamples: int) -> tuple[float, float]:
    """95% percentile interval of the mean of values of pictures, float [N]."""
    rng = np.random.default_rng(0)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(resamples)]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def main(options: Options) -> None:
    """Prints a row of JSON for each kind: means of each seed, and differences to the first kind."""
    first = None
    for kind in options.kinds:
        name, _, runs = kind.partition("=")
        if not runs:
            raise SystemExit(f"--kinds {kind}: expected NAME=RUN,RUN,…")
        seeds = []
        for run in runs.split(","):
            with tempfile.TemporaryDirectory() as folder:
                seeds.append(
                    report.evaluate(
                        run,
                        data=options.data,
                        split=options.split,
                        report=folder,
                        limit=options.limit,
                        batch_size=options.batch_size,
                        console=Console(quiet=True),
                    ).per_picture
                )
        values = np.mean(seeds, 0)
        first = values if first is None else first
        row = {"kind": name, "pictures": len(values)}
        for metric in SHOWN:
            column = PER_PICTURE.index(metric)
            row[metric] = {"seeds": [round(float(np.nanmean(seed[:, column])), 4) for seed in seeds]}
            if first is not values:
                change = values[:, column] - first[:, column]
                change = change[np.isfinite(change)]
                row[metric]["difference"] = round(float(change.mean()), 4)
                row[metric]["interval"] = [round(x, 4) for x in interval(change, options.resamples)]
        print(json.dumps({"benchmark": "saliency_table", **row}), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
