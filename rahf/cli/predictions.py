"""`rahf predictions`: outputs of programs become a predictions file."""

from __future__ import annotations

import argparse

from rahf.cli.parsing import Formatter, command
from rahf.core import exit_codes, terminal

#: Kind → module, function, summary, what INPUT is.
_KINDS = {
    "rahf-predict": (
        "rahf_files", "convert_predict", "of rahf predict", "folder or JSON file that rahf predict has written"
    ),
    "rahf-score": ("rahf_files", "convert_score", "of rahf score", "folder that rahf score has written"),
    "imagedoctor": (
        "imagedoctor", "convert", "of ImageDoctor's inference.py",
        "folder with one folder per picture: output.txt (what was printed), artifact.npy, misalignment.npy",
    ),
    "diffdoctor": (
        "diffdoctor", "convert", "of DiffDoctor's ad_inference.py", "folder of result_*.png; needs --images, too"
    ),
    "richhf-torch": (
        "richhf_torch", "convert", "of the public PyTorch port of RichHF (inference.py --infer)",
        "folder with test_outputs.json and test_imgs/",
    ),
}  # fmt: skip


def add(commands) -> None:
    """Adds the command and its options."""
    group = commands.add_parser(
        "predictions",
        help="turn outputs of other programs into a predictions file, for compare and report",
        description="Turn outputs of other programs into a predictions file, which rahf compare and rahf report take.",
        formatter_class=Formatter,
    )
    kinds = group.add_subparsers(title="outputs", metavar="KIND", required=True)
    for name, (module, function, summary, help_) in _KINDS.items():
        parser = command(
            kinds,
            name,
            run,
            f"outputs {summary}",
            f"Writes DIR/predictions.jsonl and DIR/maps/.\n\nExample:\n"
            f"  rahf predictions {name} outputs/ --out theirs{' --images pictures/' if name == 'diffdoctor' else ''}\n"
            "  rahf compare lite --predictions theirs/predictions.jsonl --data data/mine",
        )
        parser.set_defaults(module=module, function=function)
        parser.add_argument("input", metavar="INPUT", help=help_)
        parser.add_argument("--out", required=True, metavar="DIR", help="folder to create")
        if name == "diffdoctor":
            parser.add_argument("--images", required=True, metavar="DIR", help="the pictures that it was given")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    import importlib

    convert = getattr(importlib.import_module(f"rahf.comparison.converters.{args.module}"), args.function)
    converted = convert(args.input, args.out, *([args.images] if hasattr(args, "images") else []))
    for one in converted.refused[:10]:
        terminal.say(f"output {one.line}: {one.kind}: {one.reason}", stderr=True)
    if len(converted.refused) > 10:
        terminal.say(f"… and {len(converted.refused) - 10} more", stderr=True)
    terminal.say(f"{converted.count} predictions, {len(converted.refused)} refused: {converted.file}")
    return exit_codes.of_counts(converted.count, len(converted.refused))
