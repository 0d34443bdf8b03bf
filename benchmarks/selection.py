"""Measures time and memory of `rahf select` without its network, for many candidates. Prints one JSON line.

    python benchmarks/selection.py [--candidates 100000] [--size 256] [--pictures 256] [--batch 16]

Draws JPEG pictures, writes a list that refers to them in turn, and selects with a stand-in critic of mean colours,
so that it measures only reading, decoding, parquet parts, choice and manifest.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import resource
import tempfile
import time

import numpy as np
from PIL import Image

from rahf.core.batch import Prediction
from rahf.steer.best_of_n_files import SelectionOptions, select_files


class MeanColours:
    """A critic that costs nothing."""

    image_size = 64
    model_id = "mean-colours"

    def __call__(self, images, prompts, batch_size=None) -> Prediction:
        """Mean red, green, blue and all as scores."""
        means = np.stack(images).mean((1, 2)) / 255
        return Prediction(None, np.concatenate([means, means.mean(1, keepdims=True)], 1).astype(np.float32), None)


def draw(folder: pathlib.Path, count: int, size: int) -> None:
    """Smooth random JPEG pictures."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)


def write(file: pathlib.Path, count: int, pictures: int) -> None:
    """A list of candidates, eight to a prompt."""
    with open(file, "w") as out:
        for number in range(count):
            prompt = f"picture number {number // 8} of a list that is as long as those that people select from"
            out.write(json.dumps({"image": f"{number % pictures}.jpg", "prompt": prompt, "seed": number}) + "\n")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    for name, value in (("candidates", 100_000), ("size", 256), ("pictures", 256), ("batch", 16)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        draw(folder, args.pictures, args.size)
        write(folder / "candidates.jsonl", args.candidates, args.pictures)
        start, cpu = time.perf_counter(), time.process_time()
        chosen = select_files(
            "stand-in",
            folder / "candidates.jsonl",
            folder / "manifest.jsonl",
            SelectionOptions(min_gap=0.01),
            batch_size=args.batch,
            load=lambda path: MeanColours(),
        )
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result = {
        "candidates": chosen.candidates,
        "selected": chosen.selected,
        "wall_s": round(wall, 1),
        "cpu_s": round(cpu, 1),
    }
    print(json.dumps(result | {"peak_mb": round(peak)}))


if __name__ == "__main__":
    main()
