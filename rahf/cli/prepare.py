"""`rahf prepare`: datasets from labels and images."""

from __future__ import annotations

import argparse
import os

from rahf.cli.parsing import Formatter, command, width_and_height
from rahf.core import exit_codes, terminal


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
    parser.add_argument(
        "--viewers", type=int, default=0, metavar="N", help="simulated viewers of each scene: adds fixations, densities"
    )
    _add_richhf18k(kinds)
    _add_rapidata(kinds)
    _add_regions(kinds)
    _add_feedback(kinds)
    _add_planted(kinds)
    _add_saliency(kinds)
    _add_gazefusion(kinds)
    _add_motion(kinds)
    _add_squares(kinds)


def _add_richhf18k(kinds) -> None:
    parser = command(
        kinds,
        "richhf18k",
        richhf18k,
        "RichHF-18K: a copy with its pictures inside, or its labels joined with the Pick-a-Pic pictures",
        "With pictures inside, from the hub or a folder of the same parquet files:\n"
        "  rahf prepare richhf18k --hub --out data/richhf18k\n"
        "Joined: labels are the folder of train.tfrecord, dev.tfrecord, test.tfrecord (google-research/richhf_18k),\n"
        "pictures are Pick-a-Pic parquet shards, folders of shards, or folders of <uid>.jpg/png/webp with\n"
        "captions.jsonl, .csv or .tsv:\n"
        "  rahf prepare richhf18k --labels richhf_18k --images pickapic --out data/richhf18k\n"
        "An interrupted call goes on where it was.",
    )
    _add_source(parser, "Exploration/richhf_18k_with_images")
    parser.add_argument("--labels", default=None, metavar="DIR", help="folder of the TFRecord files")
    parser.add_argument("--images", default=None, nargs="+", metavar="PATH", help="parquet shards or folders")
    parser.add_argument("--out", required=True, metavar="DIR", help="directory to create")
    parser.add_argument("--captions", default=None, metavar="FILE", help="prompts by uid, for folders of images")
    _add_tokenizer(parser)


def _add_rapidata(kinds) -> None:
    parser = command(
        kinds,
        "rapidata",
        rapidata,
        "Rapidata's rich human feedback (Apache-2.0): pictures of current generators, scores, words, heatmaps",
        "From the hub (17.9 GB), or from a folder of the same parquet files. Coherence is called plausibility and\n"
        "style aesthetics; overall was not asked. An interrupted call goes on where it was.\n"
        "  rahf prepare rapidata --hub --out data/rapidata",
    )
    _add_source(parser, "Rapidata/text-2-image-Rich-Human-Feedback")
    parser.add_argument("--out", required=True, metavar="DIR", help="directory to create")
    _add_tokenizer(parser)
    _add_shares(parser, 0.05)
    parser.add_argument(
        "--people",
        type=float,
        default=None,
        metavar="N",
        help="what a word's score is divided by to be a share of people (default: found in the scores)",
    )


def _add_regions(kinds) -> None:
    parser = command(
        kinds,
        "regions",
        regions,
        "boxes, polygons or masks of artifacts as partial labels: a COCO JSON file and a folder of pictures",
        "Each picture gets an implausibility map; scores and words are missing. docs/data.md says how other sets\n"
        "become COCO files.\n"
        "  rahf prepare regions --annotations instances.json --images pictures --out data/regions",
    )
    parser.add_argument("--annotations", required=True, metavar="FILE", help="COCO JSON")
    parser.add_argument("--images", required=True, metavar="DIR", help="folder that `file_name` starts from")
    parser.add_argument("--out", required=True, metavar="DIR", help="directory to create")
    parser.add_argument(
        "--severity", default="severity", metavar="FIELD", help="field of an annotation that weights it, if it is there"
    )
    parser.add_argument("--license", default=None, metavar="TEXT", help="for the data sheet (default: the file's own)")
    _add_tokenizer(parser)
    _add_shares(parser, 0.1)


def _add_source(parser, usual: str) -> None:
    """Adds the options for published parquet shards."""
    parser.add_argument(
        "--hub",
        nargs="?",
        const=usual,
        default=None,
        metavar="OWNER/NAME",
        help=f"dataset on the Hugging Face hub; without a name {usual}",
    )
    parser.add_argument("--revision", default=None, help="branch, tag or commit of --hub (default: its main branch)")
    parser.add_argument("--folder", default=None, metavar="DIR", help="folder of the same parquet files")


def _add_tokenizer(parser) -> None:
    parser.add_argument(
        "--tokenizer",
        default=None,
        metavar="FILE",
        help="SentencePiece model to put beside the data (default: learn one)",
    )


def _add_shares(parser, share: float) -> None:
    for split in ("dev", "test"):
        parser.add_argument(
            f"--{split}", type=float, default=share, metavar="SHARE", help=f"share of the prompts that go to {split}"
        )


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
    parser.add_argument("--out", default=None, metavar="DIR", help="directory to create")
    parser.add_argument(
        "--check", action="store_true", help="make nothing: list every fault with its line and field (without --out)"
    )
    _add_tokenizer(parser)
    parser.add_argument(
        "--map-size", type=int, default=None, metavar="N", help="side of all heatmaps (default: the picture's size)"
    )
    _add_shares(parser, 0.1)


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


def _add_saliency(kinds) -> None:
    parser = command(
        kinds,
        "saliency",
        saliency,
        "where people look: pictures with fixations of an eye-tracking study, or with ready maps",
        "Fixations are pixels of the picture, x from the left and y from the top. Layout `folder`: images/, and\n"
        "fixations.csv (image,x,y[,viewer,duration]), .json or .mat, or maps/. The others are the published sets.\n"
        "  rahf prepare saliency --layout osie --folder osie --out data/osie",
    )
    parser.add_argument("--folder", required=True, metavar="DIR", help="the data in the form of --layout")
    parser.add_argument("--out", required=True, metavar="DIR", help="directory to create")
    parser.add_argument("--layout", default="folder", help="osie, mit1003, cat2000, salicon or folder")
    parser.add_argument("--sigma", type=float, default=None, metavar="PIXELS", help="of the Gaussian of a fixation")
    parser.add_argument(
        "--sigma-degrees", type=float, default=None, metavar="X", help="the same in degrees (default: 1 degree)"
    )
    parser.add_argument(
        "--pixels-per-degree", type=float, default=None, metavar="N", help="of the study (default: the layout's)"
    )
    parser.add_argument("--order", default="xy", help="yx where the file has x and y exchanged")
    parser.add_argument("--license", default=None, metavar="TEXT", help="of the data, for the data sheet")
    for split in ("dev", "test"):
        parser.add_argument(
            f"--{split}", type=float, default=0.1, metavar="SHARE", help=f"of the pictures, for {split}, if not fixed"
        )


def saliency(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from data_pipelines.gaze import prepare

    counts = prepare.prepare(
        args.folder,
        args.out,
        layout=args.layout,
        sigma=args.sigma,
        sigma_degrees=args.sigma_degrees,
        pixels_per_degree=args.pixels_per_degree,
        order=args.order,
        license=args.license,
        dev=args.dev,
        test=args.test,
    )
    return exit_codes.of_counts(counts.total("joined"), counts.left_out)


def _add_gazefusion(kinds) -> None:
    parser = command(
        kinds,
        "gazefusion",
        gazefusion,
        "square crops of captioned pictures with predicted saliency, to train a ControlNet on",
        "The shorter side becomes 512 pixels; crops of 512 with a stride of 256. Captions: a.txt beside a.jpg, or a\n"
        "file of captions by name. Near-black crops and pictures without a caption are left out and counted.\n"
        "  rahf prepare gazefusion --images photos --captions captions.jsonl --out data/gazefusion",
    )
    parser.add_argument("--images", required=True, metavar="DIR", help="folder of pictures")
    parser.add_argument("--out", required=True, metavar="DIR", help="directory to create")
    parser.add_argument("--captions", default=None, metavar="FILE", help="captions by name of the picture")
    parser.add_argument(
        "--captioner",
        default=None,
        metavar="MODEL[@REVISION]",
        help="hub id or folder of a model of image-text-to-text, which describes the others; needs rahf[torch]",
    )
    parser.add_argument("--saliency", default="saliency-lite", metavar="MODEL", help="that predicts the maps")
    parser.add_argument("--center-bias", default="learned", help="of that model: learned, or none")
    parser.add_argument("--size", type=int, default=512, metavar="PIXELS", help="side of the crops")
    parser.add_argument("--sigma", type=float, default=10.0, metavar="X", help="blur of maps, in pixels of 512")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="crops that the model sees at once")
    parser.add_argument("--license", default=None, metavar="TEXT", help="of the pictures, for the data sheet")
    _add_shares(parser, 0.05)


def gazefusion(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from data_pipelines.gazefusion import captioner as captioner_lib
    from data_pipelines.gazefusion import prepare
    from rahf.core.errors import ArgumentError
    from rahf.saliency.predictor import Saliency
    from rahf.steer import sgool_files

    model = sgool_files.load_saliency(args.saliency)
    if not isinstance(model, Saliency):
        raise ArgumentError(f"--saliency {args.saliency}: expected a saliency model, found {model!r:.80}")
    captioner = None
    if args.captioner is not None:
        name, _, revision = args.captioner.partition("@")
        captioner = captioner_lib.from_hub(name, revision or None)
    counts = prepare.prepare(
        args.images,
        args.out,
        lambda crops: [one.density for one in model(crops, center_bias=args.center_bias, batch_size=args.batch_size)],
        f"{model.model_id}, centre bias {args.center_bias}",
        args.captions,
        prepare.Options(args.size, args.sigma, args.batch_size),
        args.license,
        dev=args.dev,
        test=args.test,
        captioner=captioner,
    )
    return exit_codes.of_counts(counts.total("joined"), counts.left_out)


def _add_motion(kinds) -> None:
    parser = command(
        kinds,
        "motion",
        motion,
        "spectral volumes of motion: from your own videos, or from drawn scenes whose flow is known exactly",
        "Videos are cut into windows of 150 frames with a start every 10; windows that are still, cut, or filmed by a\n"
        "moving camera are dropped and counted. Needs the extra: pip install rahf[motion]. Drawn scenes need nothing.\n"
        "  rahf prepare motion --synthetic 500 --out data/motion\n"
        "  rahf prepare motion --videos clips/ --out data/trees",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--synthetic", type=int, default=None, metavar="N", help="draw N swaying scenes")
    source.add_argument("--videos", nargs="+", default=None, metavar="PATH", help="videos, or folders of videos")
    parser.add_argument("--out", required=True, metavar="DIR", help="directory to create")
    parser.add_argument("--size", default="256x160", metavar="WIDTHxHEIGHT", help="of pictures and flow, in pixels")
    parser.add_argument("--terms", type=int, default=16, metavar="K", help="frequencies that are kept")
    parser.add_argument("--fps", type=float, default=30.0, help="videos: rate to which they are brought")
    parser.add_argument("--stride", type=int, default=10, metavar="FRAMES", help="videos: from one window to the next")
    parser.add_argument("--flows", default=None, metavar="DIR", help="videos: NAME/FIRST.npy, flow of another program")
    parser.add_argument(
        "--least-motion", type=float, default=0.001, metavar="X", help="videos: drop less; a share of the width"
    )
    parser.add_argument(
        "--most-motion", type=float, default=0.12, metavar="X", help="videos: drop more; a share of the width"
    )
    parser.add_argument("--seed", type=int, default=0, help="drawn scenes: of all randomness")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="drawn scenes: processes that draw")
    for split in ("dev", "test"):
        parser.add_argument(f"--{split}", type=float, default=0.1, metavar="SHARE", help="of videos or scenes")


def motion(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    import pathlib

    from data_pipelines.prepare.counts import print_report
    from data_pipelines.video import flow, prepare

    options = dict(dev=args.dev, test=args.test, size=width_and_height(args.size), terms=args.terms)
    if args.videos is None:
        workers = args.workers if args.workers > 1 else 0
        counts = prepare.prepare_scenes(args.out, args.synthetic, seed=args.seed, workers=workers, **options)
    else:
        filters = flow.Filters(least_motion=args.least_motion, most_motion=args.most_motion)
        options |= dict(flows=args.flows, fps=args.fps, stride=args.stride, filters=filters)
        counts = prepare.prepare_videos(args.videos, args.out, **options)
    print_report(terminal.console(), counts, pathlib.Path(args.out))
    return exit_codes.of_counts(counts.total("joined"), counts.left_out)


def _add_squares(kinds) -> None:
    parser = command(
        kinds,
        "squares",
        squares,
        "a prepared dataset once more, with the square that a network sees stored beside each picture",
        "Training on pictures of 1,024 pixels or more then reads the squares and decodes pictures only for crops. All\n"
        "else stays as it is, and batches are the same bit by bit. OUT may be DATA.\n"
        "  rahf prepare squares data/mine --size 384 --out data/mine384",
    )
    parser.add_argument("data", metavar="DATA", help="the prepared dataset")
    parser.add_argument("--size", type=int, required=True, metavar="PIXELS", help="the network's model.image_size")
    parser.add_argument("--out", required=True, metavar="DIR", help="directory to create")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that decode")


def squares(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from data_pipelines.prepare import squares as squares_lib
    from rahf.core import names

    counts = squares_lib.prepare(args.data, args.out, args.size, args.workers if args.workers > 1 else 0)
    for line in counts.without:
        terminal.say(names.one_line(f"warning: no square: {line}"))
    total = sum(counts.records.values())
    listing = ", ".join(f"{split} {count}" for split, count in counts.records.items())
    terminal.say(
        names.one_line(
            f"{args.out}: {listing}; {total - len(counts.without)} squares of {args.size} x {args.size} pixels"
        )
    )
    return exit_codes.of_counts(total - len(counts.without), len(counts.without))


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
    return exit_codes.of_counts(counts.total("joined"), counts.left_out)


def synthetic(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from data_pipelines.synthetic import prepare

    counts = prepare.prepare(
        args.out,
        args.train,
        args.dev,
        args.test,
        args.seed,
        args.size,
        args.workers if args.workers > 1 else 0,
        viewers=args.viewers,
    )
    terminal.say(f"{args.out}: " + ", ".join(f"{split} {count}" for split, count in counts.items()))
    return 0


def richhf18k(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from rahf.core.errors import ArgumentError

    with_pictures, joined = (args.hub, args.folder), (args.labels, args.images)
    if any(with_pictures) == any(joined) or (any(joined) and not all(joined)):
        raise ArgumentError(
            "give --hub or --folder for a copy with its pictures inside, or --labels and --images to join them; found "
            + (
                ", ".join(f"--{name}" for name in ("hub", "folder", "labels", "images") if getattr(args, name))
                or "none"
            )
        )
    if any(joined):
        if args.revision is not None:
            raise ArgumentError(f"--revision {args.revision} belongs to --hub")
        from data_pipelines.richhf18k import prepare

        counts = prepare.prepare(args.labels, args.images, args.out, captions=args.captions, tokenizer=args.tokenizer)
        return exit_codes.of_counts(counts.total("joined"), counts.left_out)
    if args.captions is not None:
        raise ArgumentError(f"--captions {args.captions} belongs to --images; a copy with pictures has its captions")
    from data_pipelines.prepare.dataset_source import open_source
    from data_pipelines.richhf18k import with_pictures as mirror

    counts = mirror.prepare(open_source(args.hub, args.folder, args.revision), args.out, args.tokenizer)
    return exit_codes.of_counts(counts.total("joined"), counts.left_out)


def rapidata(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from data_pipelines.prepare.dataset_source import open_source
    from data_pipelines.rapidata import prepare

    source = open_source(args.hub, args.folder, args.revision)
    counts = prepare.prepare(source, args.out, args.tokenizer, dev=args.dev, test=args.test, people=args.people)
    return exit_codes.of_counts(counts.total("joined"), counts.left_out)


def regions(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from data_pipelines.regions import prepare

    counts = prepare.prepare(
        args.annotations,
        args.images,
        args.out,
        tokenizer=args.tokenizer,
        severity=args.severity,
        license=args.license,
        dev=args.dev,
        test=args.test,
    )
    return exit_codes.of_counts(counts.total("joined"), counts.left_out)


def feedback(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    if args.check:
        return _check_feedback(args)
    if args.out is None:
        from rahf.core.errors import ArgumentError

        raise ArgumentError("give --out DIR, the directory to create, or --check")
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
    return exit_codes.of_counts(counts.total("joined"), counts.left_out)


def _check_feedback(args: argparse.Namespace) -> int:
    from data_pipelines.feedback import check

    checked = check.check(args.annotations, args.images)
    for fault in checked.faults:
        kind = "" if fault.refused else "warning: "
        terminal.say(f"line {fault.line}: {kind}{fault.field + ': ' if fault.field else ''}{fault.message}")
    usable = checked.lines - checked.refused
    terminal.say(f"{args.annotations}: {usable} of {checked.lines} lines can be used, {len(checked.faults)} remarks")
    return exit_codes.of_counts(usable, checked.refused)
