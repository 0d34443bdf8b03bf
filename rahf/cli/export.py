"""`rahf export`."""

from __future__ import annotations

import argparse

from rahf.cli.parsing import command


def add(commands) -> None:
    """Adds the command and its options."""
    parser = command(
        commands,
        "export",
        run,
        "write a model as one self-contained file",
        "The file holds functions, weights, vocabulary, preprocessing and model card. rahf.load and every command\n"
        "that takes a model read it, with jax, flatbuffers, numpy, sentencepiece, safetensors and Pillow alone.\n"
        "Example: rahf export runs/demo demo.rahf",
    )
    parser.add_argument("model", help="run directory or checkpoint directory")
    parser.add_argument("file", metavar="FILE.rahf", help="file to write")
    parser.add_argument("--scores-only", action="store_true", help="leave out heatmaps and words")
    parser.add_argument("--bf16", action="store_true", help="store weights in 16 bits, half as large")
    parser.add_argument("--license", default=None, help="license of the weights (default: what is recorded about them)")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from rahf.critic.export.write import export_run

    export_run(args.model, args.file, scores_only=args.scores_only, bf16=args.bf16, weight_license=args.license)
    return 0
