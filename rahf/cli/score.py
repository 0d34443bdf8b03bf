"""`rahf score`."""

from __future__ import annotations

import argparse

from rahf.cli.parsing import add_images_from, command
from rahf.core import exit_codes, terminal

_DESCRIPTION = """\
Input: JSONL files (image, prompt, group), parquet files, webdataset shards (.tar), folders of shards, or folders
of pictures with a .txt beside each; paths, URLs (s3://, gs://, https://) or quoted patterns.

Output: DIR/part-*.parquet, one block each, with source, row, key, prompt, group, the four scores, prompt_cut and
error; refused.jsonl; summary.json. The same command again skips finished blocks.

Examples:
  rahf score runs/demo pictures/ --prompt "a red cat" --out scores/
  rahf score runs/demo 's3://bucket/shard-*.tar' --out s3://bucket/scores --runner ray --gpus-per-worker 1"""


def add(commands) -> None:
    """Adds the command and its options."""
    parser = command(commands, "score", run, "score very many pictures, here or on a Ray cluster", _DESCRIPTION)
    parser.add_argument(
        "model", help="run directory, checkpoint directory, exported file, name of a shipped model, or hub id"
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="files, folders, URLs or patterns")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder or URL for the parquet files")
    parser.add_argument("--runner", choices=("local", "ray"), default="local", help="ray needs pip install rahf[ray]")
    parser.add_argument("--prompt", default=None, help="of all pictures (default: each has its own)")
    parser.add_argument("--image-column", default=None, metavar="NAME", help="default: image, jpg, png, bytes, path, …")
    parser.add_argument("--prompt-column", default=None, metavar="NAME", help="default: prompt, caption or text")
    parser.add_argument("--group-column", default=None, metavar="NAME", help="default: group, else the prompt")
    add_images_from(parser)
    parser.add_argument("--batch-size", type=int, default=16, help="pictures per step of the network")
    parser.add_argument(
        "--block-size",
        type=int,
        default=1024,
        help="lines or pictures per block, all that a killed process loses; a parquet row group or a tar is one block",
    )
    parser.add_argument("--restart", action="store_true", help="remove the scores in DIR and score again")
    ray = parser.add_argument_group("with --runner ray")
    ray.add_argument("--workers", type=int, default=2, help="actors, each with its own copy of the model")
    ray.add_argument("--cpus-per-worker", type=float, default=1, help="CPU cores that an actor reserves")
    ray.add_argument("--gpus-per-worker", type=float, default=0, help="GPUs that an actor gets; with 0 it sees none")
    ray.add_argument("--address", default=None, help="of a cluster (default: RAY_ADDRESS, else one on this machine)")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from rahf.scoring import ReadOptions, score

    summary = score(
        args.model,
        args.inputs,
        args.out,
        runner=args.runner,
        options=ReadOptions(
            args.prompt, args.image_column, args.prompt_column, args.group_column, tuple(args.images_from)
        ),
        batch_size=args.batch_size,
        block_size=args.block_size,
        restart=args.restart,
        progress=True,
        cluster={
            "workers": args.workers,
            "cpus": args.cpus_per_worker,
            "gpus": args.gpus_per_worker,
            "address": args.address,
        },
    )
    if summary.refused:
        reasons = f"{args.out}/refused.jsonl"
        terminal.say(f"{summary.refused} of {summary.rows} could not be scored; why: {reasons}", stderr=True)
    if summary.prompts_cut:
        terminal.say(
            f"of {summary.prompts_cut} the model did not read the whole prompt (column prompt_cut)", stderr=True
        )
    terminal.say(f"{summary.scored} scored by {summary.model} in {summary.blocks} blocks: {args.out}/part-*.parquet")
    return exit_codes.of_counts(summary.scored, summary.refused)
