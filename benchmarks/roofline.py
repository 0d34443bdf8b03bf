"""Estimates a training step on a GPU from its compiled program, before any GPU has run it. Prints a table and a line.

    python benchmarks/roofline.py --preset vitl --batch 32 --save step.txt     # compiles for an H100; minutes
    python benchmarks/roofline.py --hlo step.txt                               # reads a compiled program
    python benchmarks/roofline.py --preset tiny --here                         # compiles for this machine's device

Each kernel takes at least the longer of two times: its floating-point operations at the peak, and the bytes of its
operands and results at the bandwidth. The sums by part of the network say where the time goes at best. Peak and
bandwidth default to those that NVIDIA states for the H100 SXM (dense bfloat16, HBM3). Compiling needs packages, but no
GPU: see benchmarks/cuda_program.py.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import pathlib
import sys
from typing import Any

import hlo_text

#: NVIDIA, H100 Tensor Core GPU data sheet: SXM, bfloat16 without sparsity; memory bandwidth.
PEAK, BANDWIDTH = 989.4, 3350.0


def estimate(program: hlo_text.Program, peak: float, bandwidth: float) -> dict[str, Any]:
    """Least milliseconds by part, and the kernels that take longest.

    Args:
      program: the compiled step.
      peak: TFLOP/s.
      bandwidth: GB/s.

    Returns:
      `parts`: by part `tflop`, `gb`, `ms_products` of kernels with products, `ms_rest` of all others; `kernels`: the
      longest groups of like kernels.
    """
    parts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    groups: dict[tuple, collections.Counter] = collections.defaultdict(collections.Counter)
    for kernel in program.kernels():
        flops, moved = program.flops_of(kernel), program.bytes_of(kernel)
        milliseconds = 1e3 * max(flops / (peak * 1e12), moved / (bandwidth * 1e9))
        name = program.op_name(kernel)
        part = next((part for part in hlo_text.PARTS if part in name), "other")
        kind = "ms_products" if flops else "ms_rest"
        parts[part].update({"tflop": flops / 1e12, "gb": moved / 1e9, kind: milliseconds, "kernels": 1})
        shapes = " ".join(f"{dtype}{list(shape)}" for dtype, shape in kernel.results[:2])
        operation = kernel.target or name.rpartition("/")[2] or kernel.opcode
        groups[part, operation, shapes].update({"ms": milliseconds, "kernels": 1})
    longest = sorted(groups.items(), key=lambda item: -item[1]["ms"])[:20]
    return {
        "parts": {
            part: {key: round(values[key], 3) for key in ("tflop", "gb", "ms_products", "ms_rest", "kernels")}
            for part, values in sorted(parts.items(), key=lambda item: -_milliseconds(item[1]))
        },
        "ms": round(sum(map(_milliseconds, parts.values())), 2),
        "kernels": [
            {"part": part, "operation": operation, "shapes": shapes, **{k: round(v, 3) for k, v in values.items()}}
            for (part, operation, shapes), values in longest
        ],
    }


def _milliseconds(values: collections.Counter) -> float:
    return values["ms_products"] + values["ms_rest"]


def table(estimated: dict[str, Any]) -> str:
    """The parts in Markdown."""
    rows = [
        "| part | TFLOP | GB | products and attention, ms | everything else, ms | share |",
        "|---|---|---|---|---|---|",
    ]
    for part, values in estimated["parts"].items():
        times = values["ms_products"], values["ms_rest"]
        cells = [f"{values['tflop']:.2f}", f"{values['gb']:.0f}", *(f"{time:.1f}" for time in times)]
        rows.append("| " + " | ".join([part, *cells, f"{sum(times) / max(estimated['ms'], 1e-9):.0%}"]) + " |")
    return "\n".join(rows)


def compiled_text(args: argparse.Namespace, fields: list[str]) -> tuple[str, dict[str, Any]]:
    """The compiled step of a preset, and the compiler's plan of its memory."""
    import cuda_program  # JAX only now: a saved program is read without it
    import measuring

    gpu = ["--model.compute-dtype", "bfloat16", "--model.remat", "dots"]
    config = measuring.preset(args.preset, args.batch, [*([] if args.here else gpu), *fields])
    size = config.data.batch_size
    program = cuda_program.compiled_here(config, size) if args.here else cuda_program.compiled(config, size)
    return program.as_text(), {"preset": args.preset, "batch": size, "gib": measuring.memory_of(program)}


def main() -> None:
    """Parses, compiles or reads, estimates, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="vitl", help="a config file's name, or a short name of measuring.PRESETS")
    parser.add_argument("--batch", type=int, default=None, help="examples; default: the config's batch size")
    parser.add_argument("--peak", type=float, default=PEAK, help=f"TFLOP/s (default: {PEAK})")
    parser.add_argument("--bandwidth", type=float, default=BANDWIDTH, help=f"GB/s (default: {BANDWIDTH})")
    parser.add_argument("--hlo", metavar="FILE", help="text of a compiled program, instead of compiling")
    parser.add_argument("--save", metavar="FILE", help="write the text of the compiled program")
    parser.add_argument("--here", action="store_true", help="compile for this machine's device instead of an H100")
    args, fields = parser.parse_known_args()
    if not args.hlo and not args.here and "JAX_SKIP_CUDA_CONSTRAINTS_CHECK" not in os.environ:
        import cuda_program

        os.environ |= cuda_program.environment()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    text, about = (pathlib.Path(args.hlo).read_text(), {}) if args.hlo else compiled_text(args, fields)
    if args.save:
        pathlib.Path(args.save).write_text(text)
    estimated = estimate(hlo_text.Program(text), args.peak, args.bandwidth)
    print(table(estimated), file=sys.stderr)
    limits = {"peak_tflop_per_second": args.peak, "bandwidth_gb_per_second": args.bandwidth}
    print(json.dumps({"benchmark": "roofline", **about, **limits, **estimated}))


if __name__ == "__main__":
    main()
