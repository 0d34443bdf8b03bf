"""`rahf prepare`: datasets from labels and images."""

from __future__ import annotations

import argparse
import os

from rahf.commands.parsing import Formatter, command


def add(commands) -> None:
    """Adds the command to the parser."""
    group = commands.add_parser("prepare", help="make a dataset from labels and images", formatter_class=Formatter)
    kinds = group.add_subparsers(title="kinds of data", metavar="KIND", required=True)
    parser = command(
        kinds,
        "synthetic",
        synthetic,
        "draw scenes with planted faults, rated by three simulated annotators",
        "Every label follows exactly from the seed. Example: rahf prepare synthetic --out data/demo --train 20000",
    )
    parser.add_argument("--out", required=True, help="directory to make")
    for split, count in (("train", 20_000), ("dev", 256), ("test", 256)):
        parser.add_argument(f"--{split}", type=int, default=count, help=f"number of {split} scenes")
    parser.add_argument("--seed", type=int, default=0, help="of all randomness")
    parser.add_argument("--size", type=int, default=96, help="side of the pictures in pixels")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that draw")
    parser = command(
        kinds,
        "richhf18k",
        richhf18k,
        "join RichHF-18K's labels with the Pick-a-Pic pictures",
        "Labels: the folder of train.tfrecord, dev.tfrecord, test.tfrecord (google-research/richhf_18k).\n"
        "Pictures: Pick-a-Pic parquet shards, folders of shards, or folders of <uid>.jpg/png/webp with\n"
        "captions.jsonl, .csv or .tsv. An interrupted call goes on where it was.",
    )
    parser.add_argument("--labels", required=True, help="folder of the TFRecord files")
    parser.add_argument("--images", required=True, nargs="+", metavar="PATH", help="parquet shards or folders")
    parser.add_argument("--out", required=True, help="directory to make")
    parser.add_argument("--captions", default=None, help="file of prompts by uid, for folders of images")
    parser.add_argument(
        "--tokenizer", default=None, help="SentencePiece model to put beside the data (default: learn one)"
    )


def synthetic(args: argparse.Namespace) -> int:
    """Runs it; the exit code."""
    from data_pipelines.synthetic import prepare

    counts = prepare.prepare(
        args.out, args.train, args.dev, args.test, args.seed, args.size, args.workers if args.workers > 1 else 0
    )
    print(f"{args.out}: " + ", ".join(f"{split} {count}" for split, count in counts.items()))
    return 0


def richhf18k(args: argparse.Namespace) -> int:
    """Runs it; the exit code."""
    from data_pipelines.richhf18k import prepare

    prepare.prepare(args.labels, args.images, args.out, captions=args.captions, tokenizer=args.tokenizer)
    return 0
