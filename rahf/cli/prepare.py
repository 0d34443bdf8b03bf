"""`rahf prepare`: datasets from labels and images."""

from __future__ import annotations

import argparse
import os

from rahf.cli.parsing import Formatter, command
from rahf.core import exit_codes


def add(commands) -> None:
    """Adds the command and its options."""
    group = commands.add_parser("prepare", help="make a dataset from labels and images", formatter_class=Formatter)
    kinds = group.add_subparsers(title="kinds of data", metavar="KIND", required=True)
    parser = command(
        kinds,
        "synthetic",
        synthetic,
        "draw scenes with planted faults, rated by three simulated annotators",
        "Every label follows exactly from the seed. Example: rahf prepare synthetic --out data/demo --train 20000",
    )
    parser.add_argument("--out", required=True, help="directory to create")
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
    parser.add_argument("--out", required=True, help="directory to create")
    parser.add_argument("--captions", default=None, help="file of prompts by uid, for folders of images")
    parser.add_argument(
        "--tokenizer", default=None, help="SentencePiece model to put beside the data (default: learn one)"
    )
    _add_feedback(kinds)
    _add_planted(kinds)


def _add_feedback(kinds) -> None:
    parser = command(
        kinds,
        "feedback",
        feedback,
        "make a dataset of your own feedback: a JSONL file and a folder of pictures",
        "One line per picture: its path, its prompt, and the feedback of people, of which any part may be missing:\n"
        '  {"image": "a.png", "prompt": "a red cat", "annotators": [{"points_implausible": [[31, 40]],\n'
        '   "points_misaligned": [], "scores": {"overall": 3}, "word_labels": [1, 0, 1]}]}\n'
        '  {"image": "b.png", "prompt": "two dogs", "scores": {"overall": 0.75}}\n'
        "A line may name its split (train, dev, test). A hash of the prompt assigns the others, so that no prompt is\n"
        "in two splits. docs/data.md describes the format.",
    )
    parser.add_argument("--annotations", required=True, metavar="FILE", help="JSONL file")
    parser.add_argument(
        "--images", required=True, metavar="DIR", help="folder that the paths start from; nothing outside it is read"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="directory to create")
    parser.add_argument(
        "--tokenizer", default=None, help="SentencePiece model to put beside the data (default: learn one)"
    )
    parser.add_argument(
        "--map-size", type=int, default=None, metavar="N", help="side of all heatmaps (default: the picture's size)"
    )
    for split in ("dev", "test"):
        parser.add_argument(
            f"--{split}", type=float, default=0.1, metavar="SHARE", help=f"share of the prompts that go to {split}"
        )


def _add_planted(kinds) -> None:
    parser = command(
        kinds,
        "planted",
        planted,
        "plant damage with exactly known places on good pictures of your own",
        "Takes clean photographs, or a generator's own good pictures, with their prompts: a.txt beside a.jpg, or a\n"
        "file of captions. Damages them, makes some prompts untrue, and lets three simulated annotators rate them.\n"
        "Look at OUT/sheet.png. Example: rahf prepare planted --images photos --out data/planted --copies 4",
    )
    parser.add_argument("--images", required=True, metavar="DIR", help="folder of pictures")
    parser.add_argument("--out", required=True, metavar="DIR", help="directory to create")
    parser.add_argument("--captions", default=None, metavar="FILE", help="prompts by name of the picture")
    parser.add_argument("--copies", type=int, default=1, metavar="N", help="examples per picture")
    parser.add_argument("--size", type=int, default=512, help="longer side of the stored pictures in pixels")
    parser.add_argument("--crop", action="store_true", help="random squares of pictures without a prompt")
    parser.add_argument("--exact", action="store_true", help="maps are the exact masks, not the annotators' marks")
    parser.add_argument("--default-prompt", default="a photo", help="of pictures without one")
    parser.add_argument("--seed", type=int, default=0, help="of all randomness")
    parser.add_argument("--tokenizer", default=None, help="SentencePiece model (default: learn one)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    for split in ("dev", "test"):
        parser.add_argument(
            f"--{split}", type=float, default=0.1, metavar="SHARE", help=f"of the pictures, for {split}"
        )


def planted(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from data_pipelines.planted import prepare
    from data_pipelines.planted.example import Options

    counts = prepare.prepare(
        args.images,
        args.out,
        captions=args.captions,
        copies=args.copies,
        options=Options(args.size, args.crop, args.exact, args.default_prompt, args.seed),
        dev=args.dev,
        test=args.test,
        tokenizer=args.tokenizer,
        workers=args.workers if args.workers > 1 else 0,
    )
    return exit_codes.of_counts(counts.total("joined"), counts.refused)


def synthetic(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from data_pipelines.synthetic import prepare

    counts = prepare.prepare(
        args.out, args.train, args.dev, args.test, args.seed, args.size, args.workers if args.workers > 1 else 0
    )
    print(f"{args.out}: " + ", ".join(f"{split} {count}" for split, count in counts.items()))
    return 0


def richhf18k(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from data_pipelines.richhf18k import prepare

    counts = prepare.prepare(args.labels, args.images, args.out, captions=args.captions, tokenizer=args.tokenizer)
    return exit_codes.of_counts(counts.total("joined"), counts.refused)


def feedback(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from data_pipelines.feedback import prepare

    counts = prepare.prepare(
        args.annotations,
        args.images,
        args.out,
        tokenizer=args.tokenizer,
        map_size=args.map_size,
        dev=args.dev,
        test=args.test,
    )
    return exit_codes.of_counts(counts.total("joined"), counts.refused)
