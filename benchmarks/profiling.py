"""Profiles steps on the device: a trace for Perfetto, and the time of each part of the network and of each kernel."""

from __future__ import annotations

import collections
import gzip
import json
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import hlo_text
import jax

_LARGEST = 15 * 2**20  # bytes of a trace that is kept; larger ones are cut to their longest events


def traced(call: Callable[[], Any], steps: int, file: str, program: str) -> dict[str, Any]:
    """Profiles `steps` calls and writes FILE.json.gz, a trace that ui.perfetto.dev and chrome://tracing show.

    Args:
      call: runs one step; its result is waited for.
      steps: how many calls.
      file: of the trace, without the ending.
      program: `compiled.as_text()` of the step, whose scopes name the parts.

    Returns:
      Milliseconds per step of the device's kernels: together, by part, and of the longest kernels.
    """
    folder = tempfile.mkdtemp()
    try:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                jax.block_until_ready(call())
        source = next(pathlib.Path(folder).rglob("*.trace.json.gz"))
        trace = json.loads(gzip.decompress(source.read_bytes()))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    target = pathlib.Path(f"{file}.json.gz")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(_shortened(trace))
    return {"file": target.name, **summary(trace["traceEvents"], steps, hlo_text.Program(program).op_names())}


def summary(events: list[dict[str, Any]], steps: int, op_names: Mapping[str, str]) -> dict[str, Any]:
    """Milliseconds per step of the kernels in a trace, from events that name an instruction of the program."""
    kernels: collections.Counter[str] = collections.Counter()
    counts: collections.Counter[str] = collections.Counter()
    parts: collections.Counter[str] = collections.Counter()
    on_device = _devices(events)
    for event in events:
        instruction = (event.get("args") or {}).get("hlo_op")
        if event.get("ph") != "X" or (event["pid"] not in on_device if on_device else not instruction):
            continue
        if on_device and not instruction and not event.get("args"):
            continue  # a row that sums up others
        milliseconds = event["dur"] / 1e3 / steps
        name = instruction or event["name"]
        kernels[name] += milliseconds
        counts[name] += 1
        scope = op_names.get(name, "")
        parts[next((part for part in hlo_text.PARTS if part in scope), "other")] += milliseconds
    longest = [
        {"name": name, "ms": round(ms, 4), "per_step": round(counts[name] / steps, 1), "op": op_names.get(name, "")}
        for name, ms in kernels.most_common(25)
    ]
    return {
        "ms_of_kernels": round(sum(kernels.values()), 3),
        "ms_by_part": {part: round(ms, 3) for part, ms in parts.most_common()},
        "longest_kernels": longest,
    }


def _devices(events: list[dict[str, Any]]) -> set[int]:
    """Process ids of the rows of accelerators in a trace; empty on a CPU, whose kernels run in host threads."""
    names = [event for event in events if event.get("ph") == "M" and event.get("name") == "process_name"]
    return {event["pid"] for event in names if "/device:" in event["args"].get("name", "")}


def _shortened(trace: dict[str, Any]) -> bytes:
    """The trace, compressed; without its shortest events if it were too large to be kept."""
    events = trace["traceEvents"]
    while True:
        data = gzip.compress(json.dumps(trace | {"traceEvents": events}).encode())
        if len(data) <= _LARGEST or not events:
            return data
        events = sorted(events, key=lambda event: -event.get("dur", float("inf")))[: len(events) // 2]
