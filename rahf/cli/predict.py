"""`rahf predict`."""

from __future__ import annotations

import argparse

from rahf.cli.parsing import command


def add(commands) -> None:
    """Adds the command and its options."""
    parser = command(
        commands,
        "predict",
        run,
        "give feedback on pictures: overlays, JSON, summary",
        'Example: rahf predict runs/demo picture.png --prompt "two red stars above a blue ring"',
    )
    parser.add_argument(
        "model", help="run directory, checkpoint directory, exported file, name of a shipped model, or hub id"
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="PNG, JPEG, WebP, … of any size")
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument(
        "--prompt", default=None, help="the prompt of all pictures (default: IMAGE's .txt file beside it)"
    )
    prompts.add_argument(
        "--prompts", default=None, metavar="FILE", help="text file with one prompt per line, as many as pictures"
    )
    parser.add_argument("--out", default="predictions", metavar="DIR", help="where overlays go")
    parser.add_argument(
        "--json", default=None, metavar="FILE", help="results as JSON (default: predictions.json in --out)"
    )
    parser.add_argument(
        "--coco", default=None, metavar="FILE", help="also write the regions of the heatmaps, with masks, as COCO JSON"
    )
    parser.add_argument("--generate", action="store_true", help="find keywords by generation, not constrained scoring")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from rahf.critic import predict

    return predict.predict(
        args.model,
        args.images,
        args.prompt,
        out=args.out,
        json_file=args.json,
        coco_file=args.coco,
        generate=args.generate,
        prompts_file=args.prompts,
    )
