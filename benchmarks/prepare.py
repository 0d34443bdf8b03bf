"""Measures `rahf prepare rapidata`: rows/s and the largest memory, on a shard in the layout of Rapidata's set.

    python benchmarks/prepare.py [--rows 1000] [--side 1024] [--folder DIR]

The shard is written first, in a process of its own, unless the folder has one: JPEG pictures, and for each two maps of
half-precision numbers in nested lists at the picture's size; every fourth row lacks one. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import pathlib
import resource
import sys
import tempfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

_AT_ONCE = 20  # rows that are written at a time
_GROUP = 100  # rows of a row group, as the hub's own converter has them


def write_shard(path: str, rows: int, side: int) -> None:
    """A shard of pictures of noise over gradients, with maps of a few bumps."""
    rng = np.random.default_rng(0)
    down, across = np.mgrid[:side, :side] / side
    maps = []
    for _ in range(12):
        values = np.zeros((side, side))
        for _ in range(3):
            y, x, width = *rng.random(2), rng.uniform(0.03, 0.1)
            values += np.exp(-((down - y) ** 2 + (across - x) ** 2) / (2 * width**2))
        maps.append((values / values.max() * rng.uniform(0.2, 1)).astype(np.float16))
    pictures = []
    for _ in range(8):
        coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)) + rng.normal(0, 5, (side, side, 3))
        buffer = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        pictures.append(buffer.getvalue())
    writer, tables = None, []
    for first in range(0, rows, _AT_ONCE):
        numbers = range(first, min(rows, first + _AT_ONCE))
        tables.append(_table(numbers, pictures, maps, rng))
        writer = writer or pq.ParquetWriter(path, tables[0].schema)
        if sum(len(table) for table in tables) >= _GROUP or numbers[-1] == rows - 1:
            writer.write_table(pa.concat_tables(tables), row_group_size=_GROUP)
            tables = []
    writer.close()


def _table(numbers: range, pictures: list[bytes], maps: list[np.ndarray], rng: np.random.Generator) -> pa.Table:
    words = ["a", "red", "cat", "number"]
    columns = {
        # A few bytes behind the end make each file another one.
        "image": [{"bytes": pictures[n % 8] + n.to_bytes(4, "big"), "path": f"{n}.jpg"} for n in numbers],
        "prompt": [f"a red cat, number {n}" for n in numbers],
        "word_scores": [json.dumps([[w, 0.5] for w in [*words, str(n)]] + [["[No_mistakes]", 2.0]]) for n in numbers],
    }
    for name in ("alignment", "coherence", "style"):
        columns[f"{name}_score"] = pa.array(rng.uniform(1, 5, len(numbers)), pa.float32())
    columns["alignment_heatmap"] = _nested([maps[rng.integers(12)] for _ in numbers])
    columns["coherence_heatmap"] = _nested([maps[rng.integers(12)] if n % 4 else None for n in numbers])
    return pa.table(columns)


def _nested(maps: list[np.ndarray | None]) -> pa.Array:
    side = next(one.shape[0] for one in maps if one is not None)
    values = np.concatenate([one.ravel() for one in maps if one is not None])
    inner = pa.ListArray.from_arrays(np.arange(0, len(values) + 1, side, dtype=np.int32), pa.array(values))
    ends = np.cumsum([0] + [0 if one is None else side for one in maps]).astype(np.int32)
    missing = pa.array([one is None for one in maps])
    return pa.ListArray.from_arrays(pa.array(ends), inner, mask=missing)


def main() -> None:
    """Writes the shard, prepares it, prints the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--side", type=int, default=1024, help="of pictures and maps in pixels")
    parser.add_argument("--folder", default=None, help="where the shard goes, or is (default: a temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(args.folder or temporary) / f"{args.rows}x{args.side}"
        shard = folder / "train-00000-of-00001.parquet"
        if not shard.exists():
            folder.mkdir(parents=True)
            writing = multiprocessing.get_context("spawn").Process(
                target=write_shard, args=(str(shard), args.rows, args.side)
            )
            writing.start()
            writing.join()
        from data_pipelines import store
        from data_pipelines.prepare.dataset_source import open_source
        from data_pipelines.rapidata.prepare import prepare

        store.load_writer()  # once per program, whatever the number of rows
        start, cpu = time.perf_counter(), time.process_time()
        counts = prepare(open_source(None, folder), pathlib.Path(temporary) / "out", progress=False)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    unit = 1 if sys.platform == "darwin" else 1024
    result = {
        "benchmark": "prepare rapidata",
        "rows": counts.total("joined"),
        "side": args.side,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "rows_per_second": round(counts.total("joined") / seconds, 1),
        "cpu_seconds_per_row": round(cpu / max(1, counts.total("joined")), 4),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
