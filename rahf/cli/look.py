"""`rahf look`."""

from __future__ import annotations

import argparse

from rahf.cli.parsing import command

_DESCRIPTION = """\
Predicts where people look in the first seconds. Writes, for every picture NAME, into --out:
NAME.overlay.png, NAME.map.png (16 bit grey, the density), NAME.scanpath.png (a sketch of an order, which was not
learnt), and all results as saliency.json.

Examples:
  rahf look photo.jpg
  rahf look runs/saliency-lite *.jpg --out looks/ --center-bias none"""


def add(commands) -> None:
    """Adds the command and its options."""
    parser = command(commands, "look", run, "predict where people look at pictures", _DESCRIPTION)
    parser.add_argument(
        "images",
        nargs="+",
        metavar="[MODEL] IMAGE",
        help="pictures; before them a run directory, exported file or hub id (default: the shipped saliency-lite)",
    )
    parser.add_argument("--out", default="looks", metavar="DIR", help="where the results go")
    parser.add_argument("--center-bias", default="learned", help="learned, or none: leave it out")
    parser.add_argument("--glances", type=int, default=6, metavar="N", help="places of the sketched scanpath")
    parser.add_argument("--batch-size", type=int, default=None, metavar="N", help="pictures at a time")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from rahf.saliency import look

    model, images = look.model_and_images(args.images)
    return look.look(
        model, images, args.out, center_bias=args.center_bias, glances=args.glances, batch_size=args.batch_size
    )
