"""Measures how long all heatmap metrics of 1,000 maps of 512x512 take. Prints one JSON line.

    python benchmarks/metrics.py [--maps 1000] [--side 512] [--threads N]

Also times 1,000 bootstrap resamples of all metrics of as many examples.
"""

from __future__ import annotations

import argparse
import json
import os
import time

import numpy as np

from rahf.metrics import HeatmapMetrics, KeywordMetrics, ScoreMetrics, bootstrap_intervals


def marked_map(rng: np.random.Generator, side: int) -> np.ndarray:
    """Three annotators' discs of radius side/20 around up to four faults, as uint8 0/85/170/255."""
    rows, columns = np.mgrid[:side, :side] + 0.5
    votes = np.zeros((side, side), np.uint8)
    faults = rng.random((rng.integers(1, 5), 2)) * side
    for _ in range(3):
        seen = np.zeros((side, side), bool)
        for y, x in faults + rng.normal(0, side / 40, faults.shape):
            seen |= (rows - y) ** 2 + (columns - x) ** 2 <= (side / 20) ** 2
        votes += seen
    return votes * 85


def main() -> None:
    """Parses, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--maps", type=int, default=1000)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    metrics = HeatmapMetrics(threads=args.threads)
    batch, spent = 50, 0.0
    for start in range(0, args.maps, 2 * batch):  # an example has two maps
        examples = min(batch, (args.maps - start + 1) // 2)
        truth = [marked_map(rng, args.side) for _ in range(2 * examples)]
        truth = np.stack(truth).reshape(examples, 2, args.side, args.side).transpose(0, 2, 3, 1)
        noise = rng.random(truth.shape, dtype=np.float32)
        prediction = np.ascontiguousarray(0.3 * truth / np.float32(255) + 0.7 * noise)
        mask = np.ones((examples, 2), bool)
        index = start // 2 + np.arange(examples)
        start_time = time.perf_counter()
        metrics.update(prediction, np.ascontiguousarray(truth), mask, index)
        spent += time.perf_counter() - start_time
    values = metrics.compute()

    examples, words = args.maps, 10
    scores, keywords = ScoreMetrics(), KeywordMetrics()
    rated = rng.integers(0, 13, (examples, 4)) / 12
    everything = np.ones((examples, words), bool)
    scores.update(rng.random((examples, 4)), rated, everything[:, :4], np.arange(examples))
    labels = rng.integers(0, 2, (2, examples, words))
    keywords.update(labels[0], labels[1], everything, np.arange(examples), rng.random((examples, words)))
    start_time = time.perf_counter()
    for family in (metrics, scores, keywords):
        bootstrap_intervals(family, resamples=1000)
    resampling = time.perf_counter() - start_time
    maps = sum(values[f"heatmaps/{name}/count"] for name in ("implausibility", "misalignment"))
    result = {
        "benchmark": "heatmap metrics",
        "maps": int(maps),
        "side": args.side,
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "seconds": round(spent, 2),
        "maps_per_second": round(maps / spent, 1),
        "bootstrap_1000_seconds": round(resampling, 2),
        "auc_judd": round(values["heatmaps/implausibility/auc_judd"], 4),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
