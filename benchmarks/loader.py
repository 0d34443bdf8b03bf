"""Measures the data loader: rates with 0, 1, 2 worker processes, the time of each part of one image, and the ratios
to the times with version 0's decoding at reduced scale, with a reduction that leaves at least twice the target, and
with squares that are stored beside the pictures (`rahf prepare squares`).

    python benchmarks/loader.py --data DIR          # a prepared dataset
    python benchmarks/loader.py                     # synthetic 512 px JPEG pictures with 512 px PNG maps

Prints a table and, per measurement, one line of JSON. Rates are those of full batches after the workers are
warm; best and median of several runs, because other programs may use the machine.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import json
import math
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import simplejpeg
import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table

from data_pipelines import store
from data_pipelines.loading import examples, loader, transforms, version_0
from data_pipelines.prepare import squares
from data_pipelines.store.records import Record
from rahf import images
from rahf.config import DataConfig
from rahf.core.errors import RahfError
from rahf.images import decode, maps
from rahf.text import Tokenizer, load_tokenizer, split_words, train_tokenizer


@dataclasses.dataclass(frozen=True)
class Options:
    """Measures the training loader: decode, resize, augment, tokenize, batch."""

    data: str = ""  # prepared dataset; empty: synthetic pictures
    split: str = "train"
    image_size: int = 384
    batch_size: int = 32
    workers: tuple[int, ...] = (0, 1, 2)  # numbers of worker processes to try; 0 is threads
    batches: int = 24  # per run
    runs: int = 3
    augment: bool = True
    crops: bool = True  # False: only the colours are augmented
    source_size: int = 512  # side of synthetic pictures
    source_count: int = 256  # how many of them


def synthetic(count: int, side: int) -> list[Record]:
    """Pictures with about the detail of photographs, and heatmaps of discs in the annotators' grey levels."""
    rng = np.random.default_rng(0)
    words = "a red blue cat dog house on under left of the tree two three".split()
    return [_synthetic_record(number, side, words, rng) for number in range(count)]


def _synthetic_record(number: int, side: int, words: list[str], rng: np.random.Generator) -> Record:
    picture = np.zeros((side, side, 3), np.float32)
    for cells in (4, 16, 64, 256):  # noise at four scales
        noise = rng.normal(0, 1, (cells, cells, 3)).astype(np.float32)
        layers = [Image.fromarray(noise[..., c]).resize((side, side)) for c in range(3)]
        picture += np.stack([np.asarray(layer) for layer in layers], -1) * 40 / np.sqrt(cells / 4)
    prompt = " ".join(rng.choice(words, 10))
    return Record(
        uid=f"synthetic-{number}",
        prompt=prompt,
        words=tuple(split_words(prompt)),
        word_labels=tuple(int(label) for label in rng.integers(0, 2, 10)),
        image=_encode(np.clip(picture + 127, 0, 255).astype(np.uint8), "JPEG", quality=84),
        implausibility=_encode(_discs(4, rng), "PNG"),
        misalignment=_encode(_discs(4 * (number % 2), rng), "PNG"),
        scores=rng.random(4, dtype=np.float32),
    )


def _discs(count: int, rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:512, :512]
    heat = np.zeros((512, 512), np.uint8)
    for cx, cy in rng.uniform(0, 512, (count, 2)):
        disc = (x - cx) ** 2 + (y - cy) ** 2 < 25.6**2
        heat[disc] = np.maximum(heat[disc], rng.choice([85, 170, 255]))
    return heat


def _encode(values: np.ndarray, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format, **options)
    return buffer.getvalue()


def rate(options: Options, config: DataConfig, tokenizer: Tokenizer, source: loader.RecordSequence) -> dict[str, Any]:
    """Images per second of the loader with `config.workers` workers: best, median and first-batch delay."""
    rates, begin = [], time.perf_counter()
    with loader.train_loader(config, options.image_size, tokenizer, 0, source=source) as batches:
        next(batches)
        first = time.perf_counter() - begin
        for _ in range(3 * max(1, config.workers)):  # until all prefetched batches are used up
            next(batches)
        for _ in range(options.runs):
            begin = time.perf_counter()
            for _ in range(options.batches):
                next(batches)
            rates.append(options.batches * config.batch_size / (time.perf_counter() - begin))
    return {
        "measure": "rate",
        "workers": config.workers,
        "images_per_second_best": round(max(rates), 1),
        "images_per_second_median": round(statistics.median(rates), 1),
        "first_batch_seconds": round(first, 2),
    }


@contextlib.contextmanager
def timed(parts: dict[str, tuple[Any, str]]) -> Iterator[collections.Counter]:
    """Counts the seconds spent in functions in the with block; `parts` maps a label to (module, name of function)."""
    seconds: collections.Counter = collections.Counter()

    def wrap(label: str, function: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[label] += time.perf_counter() - begin

        return wrapped

    originals = [(owner, name, getattr(owner, name)) for owner, name in parts.values()]
    for label, (owner, name) in parts.items():
        setattr(owner, name, wrap(label, getattr(owner, name)))
    try:
        yield seconds
    finally:
        for owner, name, function in originals:
            setattr(owner, name, function)


def shares(options: Options, config: DataConfig, tokenizer: Tokenizer, source: loader.RecordSequence) -> dict[str, Any]:
    """The time of one image in one thread: milliseconds and share of each part."""
    count = min(256, len(source))
    parts = {
        "decode image": (decode, "_decoded"),
        "decode maps": (images, "load_grey"),
        "resize image": (decode, "resize_box"),
        "resize maps": (maps, "resize_box"),
        "draw crop": (transforms, "random_box"),
        "colours": (transforms, "random_colours"),
        "tokenize": (examples, "_text"),
    }
    with timed(parts) as seconds:
        begin, begin_cpu = time.perf_counter(), time.process_time()
        for index in range(count):
            start = time.perf_counter()
            record = source[index]
            seconds["read"] += time.perf_counter() - start
            rng = np.random.default_rng((0, 0, index))
            examples.example(record, index, config, options.image_size, tokenizer, rng)
        total, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
    seconds["other"] = total - sum(seconds.values())
    decoding = sum(spent for label, spent in seconds.items() if label.startswith("decode"))
    return {
        "measure": "time of one image",
        "milliseconds": round(1000 * total / count, 3),
        "cpu_milliseconds": round(1000 * cpu / count, 3),  # less than the above if other programs used the core
        "decode_share": round(decoding / total, 3),
        "parts": {label: round(1000 * spent / count, 3) for label, spent in seconds.most_common()},
    }


def twice_the_target(record: Record, size: int, box: images.Box, on_damage: Any = None) -> np.ndarray:
    """A square that the loader does not use: JPEG is decoded at the smallest scale at which the box still has twice as
    many pixels as the square."""
    least = [math.ceil(2 * size / (box[i + 2] - box[i])) for i in (0, 1)]
    pixels = simplejpeg.decode_jpeg(record.image, min_width=least[0], min_height=least[1])
    return np.asarray(decode.resize_box(Image.fromarray(pixels), size, box))


def ratios(
    options: Options,
    config: DataConfig,
    tokenizer: Tokenizer,
    source: loader.RecordSequence,
    squared: loader.RecordSequence,
) -> list[dict[str, Any]]:
    """The time of one example, its reading included, as a multiple of its time with another decoding. One thread, in
    alternation; medians of the ratios of processor time.

    Args:
      source: records without squares.
      squared: the same records with squares.
    """
    ways = {
        "full": (source, examples.decode_square),
        "version 0": (source, version_0.square),
        "twice": (source, twice_the_target),
        "squares": (squared, examples.decode_square),
    }
    pairs = {
        "time of an example against version 0": ("full", "version 0"),
        "time of an example against a reduction to twice the target": ("full", "twice"),
        "time of an example with stored squares against version 0": ("squares", "version 0"),
        "time of an example with stored squares against one without": ("squares", "full"),
    }
    count, spent = min(64, len(source)), {name: [] for name in ways}
    for number in range(2 * options.runs):
        for name, (records, decode_square) in ways.items():
            begin = time.process_time()
            for index in range(count):
                rng = np.random.default_rng((0, number, index))
                examples.example(records[index], index, config, options.image_size, tokenizer, rng, decode_square)
            spent[name].append(time.process_time() - begin)
    rows, noise = [], source[0]._replace(image=_noise(options.source_size))
    for measure, (one, other) in pairs.items():
        values = [a / b for a, b in zip(spent[one], spent[other])]
        way = ways[other][1]
        rows.append(
            {
                "measure": measure,
                "ratio": round(statistics.median(values), 3),
                "lowest": round(min(values), 3),
                "highest": round(max(values), 3),
                "largest_difference": _difference(source[0], options.image_size, way),
                "largest_difference_of_noise": _difference(noise, options.image_size, way),
            }
        )
    return rows


def _difference(record: Record, size: int, other: examples.DecodeSquare) -> int:
    """Largest difference of a square to that of another decoding, in grey levels."""
    both = [function(record, size, images.FULL).astype(int) for function in (examples.decode_square, other)]
    return int(np.abs(both[0] - both[1]).max())


def _noise(side: int) -> bytes:
    """A JPEG of the finest detail there is."""
    values = np.random.default_rng(0).integers(0, 2, (side, side, 1), np.uint8) * np.uint8(255)
    return _encode(np.repeat(values, 3, axis=2), "JPEG", quality=95)


def report(console: Console, rows: list[dict[str, Any]]) -> None:
    """Prints the measurements as tables."""
    table = Table(title="images per second, augmented batches")
    for column in ("workers", "best", "median", "first batch after"):
        table.add_column(column, justify="right")
    for row in rows[:-5]:
        label = (str(row["workers"]) if row["workers"] else "0 (threads)") + ", squares" * row["squares"]
        best, median = row["images_per_second_best"], row["images_per_second_median"]
        table.add_row(label, f"{best:.0f}", f"{median:.0f}", f"{row['first_batch_seconds']:.1f} s")
    console.print(table)
    last, *against = rows[-5:]
    title = (
        f"one image, one thread: {last['milliseconds']:.2f} ms, {last['cpu_milliseconds']:.2f} of a core, "
        f"{last['decode_share']:.0%} of it decode"
    )
    table = Table(title=title, min_width=len(title))
    for column in ("part", "ms", "share"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for label, spent in last["parts"].items():
        table.add_row(label, f"{spent:.2f}", f"{spent / last['milliseconds']:.0%}")
    console.print(table)
    for one in against:
        console.print(
            f"{one['measure']}: {one['ratio']:.2f} ({one['lowest']:.2f} to {one['highest']:.2f}); pixels differ by up "
            f"to {one['largest_difference']} grey levels, in noise {one['largest_difference_of_noise']}"
        )


def main(options: Options, folder: pathlib.Path) -> None:
    """Measures and prints. `folder`: for a dataset without squares and one with them."""
    config = DataConfig(options.data or "synthetic", train_split=options.split, batch_size=options.batch_size)
    if not options.augment:
        config = dataclasses.replace(config, augment=None)
    elif not options.crops:
        config = dataclasses.replace(config, augment=dataclasses.replace(config.augment, crop_probability=0.0))
    data = options.data
    if not data:
        records, data = synthetic(options.source_count, options.source_size), str(folder / "plain")
        vocabulary = train_tokenizer([record.prompt for record in records])
        store.write_dataset(data, {options.split: records}, "Made for a benchmark.", vocabulary)
    squares.prepare(data, folder / "squares", options.image_size, progress=False)
    tokenizer = load_tokenizer(store.tokenizer_path(data))
    source, squared = store.open_split(data, options.split), store.open_split(folder / "squares", options.split)
    width, height = images.check_header(source[0].image)[1:]
    about = {
        "data": config.path,
        "records": len(source),
        "source_image": f"{width}x{height}",
        "image_size": options.image_size,
        "batch_size": options.batch_size,
        "augment": options.augment,
        "crops": options.crops,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
    # Before the rates, because the threads of a loader end only after a moment.
    last = [shares(options, config, tokenizer, source), *ratios(options, config, tokenizer, source, squared)]
    rows = [
        {
            **rate(options, dataclasses.replace(config, workers=workers), tokenizer, records),
            "squares": records is squared,
        }
        for workers in options.workers
        for records in (source, squared)
    ]
    rows += last
    report(Console(file=sys.stderr), rows)
    for row in rows:
        print(json.dumps({"benchmark": "loader", **about, **row}))


if __name__ == "__main__":
    try:
        with tempfile.TemporaryDirectory() as folder:
            main(tyro.cli(Options), pathlib.Path(folder))
    except RahfError as error:
        sys.exit(f"error: {error}")
