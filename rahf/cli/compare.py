"""`rahf compare`."""

from __future__ import annotations

import argparse

from rahf.cli.parsing import command
from rahf.core import exit_codes

_DESCRIPTION = """\
Every label counts only for examples that all compared predict, and differences are paired by example. Beside the models
stand predictions that look at nothing (everything is bad, nothing is, a disc in the centre) and, where the maps of
several people were kept (rahf prepare), one person judged by the others.

A predictions file has one JSON object per line, with what any program predicts of a picture:
  {"uid": "17", "scores": {"overall": 0.8}, "word_labels": [1, 0, 1], "implausibility": "maps/17.png"}
It is matched to the examples by uid, else by the picture's name ("image"), else by the prompt. Maps are grey pictures,
white = bad, in the file's folder. docs/report.md describes every field; rahf predictions converts outputs of others.

Examples:
  rahf compare runs/a runs/b --data data/mine
  rahf compare lite --predictions other/predictions.jsonl --data data/mine --json compared.json"""


def add(commands) -> None:
    """Adds the command and its options."""
    parser = command(
        commands, "compare", run, "measure models and predictions of others on one data set, side by side", _DESCRIPTION
    )
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help="run, checkpoint, exported file, shipped model, hub id, or .jsonl"
    )
    parser.add_argument("--predictions", nargs="+", default=[], metavar="FILE.jsonl", help="predictions of any program")
    parser.add_argument("--data", required=True, metavar="DIR", help="prepared dataset")
    parser.add_argument("--split", default="test", help="split to compare on")
    parser.add_argument("--json", default=None, metavar="FILE", help="all metrics, differences and refused lines")
    parser.add_argument("--limit", type=int, default=None, help="only this many examples, the first ones that count")
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from rahf.comparison import run as comparing

    comparison, sources = comparing.run(
        args.models,
        args.predictions,
        data=args.data,
        split=args.split,
        json_file=args.json,
        limit=args.limit,
        resamples=args.resamples,
    )
    return exit_codes.of_counts(comparison.count, sum(len(source.refused) for source in sources))
