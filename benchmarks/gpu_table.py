"""Turns the lines of benchmarks/gpu.py into the tables of docs/benchmarks.md.

    python benchmarks/gpu_table.py runs/gpu/gpu.jsonl

A row whose measurement is missing or failed says "not measured".
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Iterable, Mapping
from typing import Any

MISSING = "not measured"
Lines = Mapping[str, Mapping[str, Any]]


def read(file: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The newest line of each measurement by name; a failure does not replace a success. Cut-off lines are left out."""
    lines: dict[str, dict[str, Any]] = {}
    for text in file.read_text().splitlines() if file.is_file() else []:
        try:
            line = json.loads(text)
            name, status = line["measurement"], line["status"]
        except (ValueError, KeyError, TypeError):
            continue
        if status == "ok" or lines.get(name, {}).get("status") != "ok":
            lines[name] = line
    return lines


def succeeded(lines: Lines) -> set[str]:
    """Names of the measurements that need not be made again."""
    return {name for name, line in lines.items() if line["status"] == "ok" and name != "run"}


def result(lines: Lines, name: str) -> Mapping[str, Any]:
    """What a measurement printed; empty if it failed, was skipped or is missing."""
    line = lines.get(name, {})
    return line.get("result", {}) if line.get("status") == "ok" else {}


def cell(values: Mapping[str, Any], name: str, form: str = "{}") -> str:
    """A value of a measurement, or "not measured"."""
    value = values.get(name)
    return MISSING if value is None else form.format(value)


def ratio(lines: Lines, ours: str, theirs: str) -> str:
    """How many times as many images per second `ours` computes as `theirs`."""
    speeds = [result(lines, name).get("images_per_second") for name in (ours, theirs)]
    return f"{speeds[0] / speeds[1]:.2f}" if all(speeds) else MISSING


_SPEED = {
    "training, ours (wanted: ≤ 45 GiB, ≥ 50%)": "train_full",
    "training, ours, in 2 parts of 16": "train_parts",
    "training, ours, `quarter` head": "train_quarter",
    "training, PyTorch tuned": "torch_tuned",
    "training, PyTorch eager float32": "torch_eager",
    "inference with teacher forcing, ours": "inference_all",
    "inference with teacher forcing, PyTorch tuned": "torch_inference_all",
    "inference, scores only, ours (wanted: ≥ 700 images/s)": "inference_scores",
    "inference, scores only, PyTorch tuned": "torch_inference_scores",
    "16 GiB: adapters, batch 4 in 4 parts": "memory16_lora",
    "16 GiB: Adafactor, everything trained, batch 4 in 4 parts": "memory16_adafactor",
}
_RATIOS = {
    "training, ours / PyTorch tuned": ("train_full", "torch_tuned", "≥ 1.5"),
    "training, ours / PyTorch eager": ("train_full", "torch_eager", "≥ 7"),
    "training, `quarter` / full head": ("train_quarter", "train_full", "≥ 2"),
    "inference, ours / PyTorch tuned": ("inference_all", "torch_inference_all", "≥ 1.5"),
    "scores only, ours / PyTorch tuned": ("inference_scores", "torch_inference_scores", ""),
}
_CHECKS = ("attention", "precision", "upsampling", "export")


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    cells = [list(head), *map(list, rows)]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(cells[0]), *lines[1:]])


def _speed_row(label: str, values: Mapping[str, Any]) -> list[str]:
    tflops = values.get("tflop_per_second")
    return [
        label,
        cell(values, "batch"),
        cell(values, "images_per_second"),
        cell(values, "ms"),
        "–" if tflops is None and values else cell(values, "tflop_per_second", "{:.1f}"),
        cell(values, "peak_gib", "{} GiB"),
        "–" if values and "share_of_matmul_peak" not in values else cell(values, "share_of_matmul_peak", "{:.0%}"),
        "–" if values and "compile_seconds" not in values else cell(values, "compile_seconds", "{} s"),
    ]


def tables(lines: Lines) -> str:
    """All tables, in Markdown."""
    run, limits = result(lines, "run"), result(lines, "limits")
    device = run.get("gpu") or result(lines, "device").get("device") or "no GPU"
    date = str(lines.get("run", {}).get("time", ""))[:10]
    head = ("", "batch", "images/s", "ms", "TFLOP/s", "peak memory", "share of matmul peak", "compiling")
    speed = _table(head, (_speed_row(label, result(lines, name)) for label, name in _SPEED.items()))
    ratios = _table(
        ("images/s", "ratio", "wanted"),
        ([label, ratio(lines, a, b), wanted] for label, (a, b, wanted) in _RATIOS.items()),
    )
    reached = {
        "matmul, bfloat16": ("bfloat16_tflop_per_second", "{} TFLOP/s"),
        "matmul, float32 as JAX computes it by default (TF32)": ("float32_tflop_per_second", "{} TFLOP/s"),
        "convolution of the heads, bfloat16": ("convolution_tflop_per_second", "{} TFLOP/s"),
        "copy": ("copy_gb_per_second", "{} GB/s"),
    }
    reach = _table(("limit", "measured"), ([label, cell(limits, *reading)] for label, reading in reached.items()))
    rows = [[f"check: {name}", _passed(result(lines, f"check_{name}"))] for name in _CHECKS]
    upsampling = result(lines, "check_upsampling")
    forms = [_of(upsampling, f"{form}_ms") for form in ("subpixel", "transposed")]
    together = " / ".join(forms) if upsampling else MISSING
    rows.append(["up-convolutions of a head and their gradients, sub-pixel / transposed, ms", together])
    decode, overlap = result(lines, "decode"), result(lines, "overlap")
    tokens = _of(decode, "tokens_per_second", " ({} tokens/s)")
    rows.append(["decoding, cached / re-run", cell(decode, "ratio") + tokens])
    rates = [_of(overlap, f"{kind}_images_per_second") for kind in ("run", "step", "loader")]
    together = " / ".join(rates) if overlap else MISSING
    rows.append(["images/s of a training run / its step alone / its loader alone", together])
    metrics = result(lines, "rehearsal").get("metrics", {"metrics": MISSING})
    rows += [[f"rehearsal, {name}", str(value)] for name, value in metrics.items()]
    bad = {name: line for name, line in lines.items() if line["status"] != "ok"}
    failed = [f"* {name}: {line['status']}, {line.get('error', '')[-300:]}" for name, line in bad.items()]
    parts = [f"{device}, {date}, `make gpu`", speed, ratios, reach, _table(("other", ""), rows)]
    return "\n\n".join([*parts, "\n".join(failed)]).rstrip() + "\n"


def _passed(values: Mapping[str, Any]) -> str:
    return MISSING if not values else "passed" if values.get("passed") else "FAILED"


def _of(values: Mapping[str, Any], name: str, form: str = "{}") -> str:
    return form.format(values[name]) if values.get(name) is not None else ""


if __name__ == "__main__":
    print(tables(read(pathlib.Path(sys.argv[1]))), end="")
