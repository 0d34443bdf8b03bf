"""`rahf report`."""

from __future__ import annotations

import argparse

from rahf.cli.parsing import add_images_from, command
from rahf.core import exit_codes

_DESCRIPTION = """\
Three reports, each one HTML file that opens from disk, asks nobody for anything and can be mailed:

  models on labelled data    metrics with intervals and paired differences beside what is trivial and beside people,
                             win rates, calibration, precision over recall of marks, confusion of words
  models on pictures         the same pictures judged by several models, without labels
  generators                 folders of pictures of the same prompts under one model: scores, win rates by prompt

All have distributions of scores and a gallery: maps over pictures to switch on and off, a slider between two models or
two generators, filters by prompt and by disagreement. docs/report.md explains every number.

Examples:
  rahf report runs/a runs/b --data data/mine --out report.html
  rahf report lite theirs/predictions.jsonl --data data/mine --out report.html
  rahf report runs/a --images sd15/ sdxl/ --out generators.html"""


def add(commands) -> None:
    """Adds the command and its options."""
    parser = command(
        commands, "report", run, "compare models, or generators under a model, in one HTML file", _DESCRIPTION
    )
    parser.add_argument(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help="run, checkpoint, exported file, shipped model, hub id, or predictions file (.jsonl)",
    )
    parser.add_argument("--predictions", nargs="+", default=[], metavar="FILE", help="predictions of any program")
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--data", default=None, metavar="DIR", help="prepared dataset to measure on")
    place.add_argument(
        "--images",
        nargs="+",
        default=[],
        metavar="DIR",
        help="pictures with prompts (a .txt file beside each, or JSONL with image and prompt); several: generators",
    )
    parser.add_argument("--split", default="test", help="split of --data")
    parser.add_argument("--out", required=True, metavar="FILE.html", help="the report")
    add_images_from(parser)
    parser.add_argument("--title", default=None, help="heading (default: made of the names)")
    parser.add_argument("--limit", type=int, default=None, help="only this many examples or prompts, the first ones")
    parser.add_argument("--examples", type=int, default=200, help="size of the gallery")
    parser.add_argument("--max-mb", type=float, default=20.0, help="largest size of the file")
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from rahf.comparison.report.run import report

    written = report(
        args.sources,
        out=args.out,
        data=args.data,
        split=args.split,
        images=args.images,
        predictions=args.predictions,
        images_from=args.images_from,
        title=args.title,
        limit=args.limit,
        examples=args.examples,
        max_bytes=int(args.max_mb * 1_000_000),
        resamples=args.resamples,
    )
    return exit_codes.of_counts(written.count, written.refused)
