"""What the benchmarks of the network share: presets, batches, clocks, and the limit of the chip."""

from __future__ import annotations

import argparse
import dataclasses
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.monitoring
import jax.numpy as jnp

from rahf import config as config_lib
from rahf.config import Config, overrides
from rahf.core import batch as batch_lib
from rahf.core.batch import Batch

#: Short names of config files of the critic.
PRESETS = {"vitl": "richhf18k_vitl", "fast": "richhf18k_fast", "paper": "richhf18k_paper", "tiny": "richhf18k_vitl"}
#: Preset "tiny": the structure of "vitl" in sizes that run in seconds on a CPU.
TINY = (
    "--model.image-size 64 --model.vit.width 32 --model.vit.depth 2 --model.vit.heads 2 --model.vit.mlp-width 64 "
    "--model.t5.vocab-size 4096 --model.t5.width 32 --model.t5.heads 2 --model.t5.head-width 16 "
    "--model.t5.mlp-width 64 --model.t5.encoder-layers 2 --model.t5.decoder-layers 2 "
    "--model.heatmap-head.conv-widths 16 16 --model.heatmap-head.up-widths 16 8 8 8 "
    "--model.score-head.conv-widths 16 8 --model.score-head.dense-widths 16"
).split()


def cpu_milliseconds(function: Callable, *arguments: Any) -> float:
    """Processor time of all threads, the least of three calls after one that compiles."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(3):
        start = time.process_time()
        jax.block_until_ready(function(*arguments))
        times.append(time.process_time() - start)
    return 1e3 * min(times)


def arguments(description: str) -> argparse.ArgumentParser:
    """--preset, --batch, --seconds, --rounds; config fields may follow."""
    parser = argparse.ArgumentParser(description=description, epilog="Config fields may follow: --model.remat dots")
    parser.add_argument("--preset", default="demo", help=f"a config file's name, or {', '.join(PRESETS)}")
    parser.add_argument("--batch", type=int, default=None, help="examples; default: the config's batch size")
    parser.add_argument("--rounds", type=int, default=5, help="measurements; the median counts")
    parser.add_argument("--seconds", type=float, default=3.0, help="least length of a measurement")
    return parser


def preset(name: str, batch: int | None, fields: list[str]) -> Config:
    """The config of a preset for a benchmark: without dropout, at most 64 tokens of prompt and of target.

    On accelerators the network computes in bfloat16 and keeps only products for the gradient. `fields` of the command
    line override all of this.
    """
    file = f"configs/critic/{PRESETS.get(name, name)}.py"
    config = config_lib.load(file)
    changes = []
    if jax.default_backend() != "cpu":
        changes = ["--model.compute-dtype", "bfloat16", "--model.remat", "dots"]
    changes += ["--data.max-target-tokens", str(min(config.data.max_target_tokens, 64))]
    changes += ["--model.vit.dropout", "0", "--model.t5.dropout", "0"]
    changes += ["--model.heatmap-head.dropout", "0", "--model.score-head.dropout", "0"]
    if batch is not None:
        changes += ["--data.batch-size", str(batch)]
    if name == "tiny":
        changes += TINY
    return overrides.parse(file, changes + fields)


def fake(config: Config, size: int) -> Batch:
    """A batch of random pictures and texts of the config's sizes."""
    data = config.data
    return batch_lib.fake(
        size, config.model.image_size, data.max_prompt_tokens, data.max_target_tokens, data.max_words,
        vocab_size=min(1000, config.model.t5.vocab_size),
    )  # fmt: skip


def per_call(call: Callable[[], Any], seconds: float, rounds: int) -> list[float]:
    """Seconds per call of each round. Dispatches the calls of a round one after the other and waits for the last."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    count = max(1, round(seconds / max(time.perf_counter() - start, 1e-6)))
    per_round = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(count):
            out = call()
        jax.block_until_ready(out)
        per_round.append((time.perf_counter() - start) / count)
    return per_round


def timed(step: Callable[[], Any], count: int) -> list[tuple[float, float]]:
    """Seconds and processor seconds of each of `count` steps; a step waits for its end."""
    times = []
    for _ in range(count):
        clock, processor = time.perf_counter(), time.process_time()
        step()
        times.append((time.perf_counter() - clock, time.process_time() - processor))
    return times


def in_turns(steps: Mapping[str, Callable[[], Any]], rounds: int, seconds: float) -> dict[str, Any]:
    """Two steps in turn, "ours" and a peer: medians of rounds, the fastest step, ratios of neighbouring rounds.

    A busy machine disturbs both alike. The first round, in which both allocate their memory, is not counted. A ratio is
    the peer's time divided by ours, by the clock and by the processor time used.
    """
    (peer,) = set(steps) - {"ours"}
    counts = {}
    for name, step in steps.items():
        step()
        counts[name] = max(1, round(seconds / timed(step, 1)[0][0])) if seconds else 1
    rounds_of = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name in sorted(steps, reverse=number % 2 == 1):
            times = timed(steps[name], counts[name])
            rounds_of[name] += [times] if number else []
    result: dict[str, Any] = {"steps": {name: rounds * count for name, count in counts.items()}}
    for at, kind in enumerate(("", "processor_")):
        means = {name: [statistics.fmean(t[at] for t in times) for times in each] for name, each in rounds_of.items()}
        least = {name: min(t[at] for times in each for t in times) for name, each in rounds_of.items()}
        ratios = [theirs / ours for theirs, ours in zip(means[peer], means["ours"])]
        for name in steps:
            result[f"{name}_{kind}ms"] = round(1e3 * statistics.median(means[name]), 3)
            result[f"{name}_{kind}ms_fastest"] = round(1e3 * least[name], 3)
        spread = {"min": min(ratios), "median": statistics.median(ratios), "max": max(ratios)}
        spread["fastest"] = least[peer] / least["ours"]
        result[f"{kind}ratio"] = {name: round(value, 3) for name, value in spread.items()}
    return result


def matmul_peak(dtype: str, side: int | None = None) -> float:
    """TFLOP/s of the fastest of several products of large square matrices in the dtype of the network.

    The values are random: a GPU multiplies constant ones faster, because it uses less power.
    """
    side = side or (8192 if jax.default_backend() != "cpu" else 2048)
    x = jax.random.normal(jax.random.key(0), (side, side), dtype)
    product = jax.jit(lambda x: x @ x)
    return 2 * side**3 / min(per_call(lambda: product(x), 0.5, 5)) / 1e12


def copy_bandwidth(gib: float | None = None) -> float:
    """GB/s of the fastest of several copies of a large array; bytes read and bytes written count."""
    gib = gib or (2.0 if jax.default_backend() != "cpu" else 0.125)
    x = jax.random.bits(jax.random.key(0), (int(gib * 2**28),), jnp.uint32)
    copy = jax.jit(lambda x: x ^ 1)  # the compiler would remove a plain copy
    return 2 * x.nbytes / min(per_call(lambda: copy(x), 0.5, 5)) / 1e9


def compiled(function: Any, *arguments: Any) -> tuple[Any, dict[str, Any]]:
    """A jitted function compiled for its arguments; how long that took, and whether it came from the cache on disk."""
    hits = []

    def listen(event: str, **_: Any) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            hits.append(event)

    jax.monitoring.register_event_listener(listen)
    try:
        start = time.perf_counter()
        program = function.lower(*arguments).compile()
        seconds = time.perf_counter() - start
    finally:
        jax.monitoring.unregister_event_listener(listen)
    return program, {"compile_seconds": round(seconds, 2), "compile_cached": bool(hits)}


def peak_memory() -> float:
    """Largest number of GiB in use at one time: on the device, or on a CPU by the process."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 2**30
    # macOS counts bytes, Linux KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30


def memory_of(compiled: Any) -> dict[str, float]:
    """GiB of a compiled function, from the compiler's plan: arguments, temporaries, and together."""
    plan = compiled.memory_analysis()
    sizes = {"arguments": plan.argument_size_in_bytes, "temporaries": plan.temp_size_in_bytes}
    # Donated arguments become results.
    sizes["together"] = sum(sizes.values()) + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return {name: round(size / 2**30, 3) for name, size in sizes.items()}


def device() -> dict[str, Any]:
    """What a measurement runs on: device, cores and the version of JAX."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"device": jax.local_devices()[0].device_kind, "cores": cores, "jax": jax.__version__}


def described(config: Config, size: int) -> dict[str, Any]:
    """The settings of a measurement: device, cores, batch and options of the network."""
    model = config.model
    return {
        **device(),
        "batch": size,
        "dtype": model.compute_dtype,
        **{name: getattr(model, name) for name in ("attention", "remat", "scan_layers")},
        "heatmap_head": model.heatmap_head.kind,
    }


def speed(seconds: list[float], size: int, flops: float, peak: float) -> dict[str, Any]:
    """Median, fastest and slowest round as images/s, milliseconds and shares of the peak."""
    median = statistics.median(seconds)
    achieved = flops / median / 1e12
    return {
        "images_per_second": round(size / median, 2),
        "ms": round(1e3 * median, 2),
        "ms_fastest": round(1e3 * min(seconds), 2),
        "ms_slowest": round(1e3 * max(seconds), 2),
        "tflop_per_image": round(flops / size / 1e12, 6),
        "tflop_per_second": round(achieved, 4),
        "matmul_peak_tflop_per_second": round(peak, 4),
        "share_of_matmul_peak": round(achieved / peak, 4),
    }


def without_recomputation(config: Config) -> Config:
    """The same network without recomputation and accumulation: its arithmetic is what a step must do at least."""
    model = dataclasses.replace(config.model, remat="none", attention="xla")
    return dataclasses.replace(config, model=model, train=dataclasses.replace(config.train, accumulate=1))
