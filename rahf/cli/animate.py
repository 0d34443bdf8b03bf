"""`rahf animate`."""

from __future__ import annotations

import argparse
import sys

from rahf.cli.parsing import command
from rahf.core import terminal

_DESCRIPTION = """\
A spectral volume says how every pixel of a photograph sways: a file of 16 frequencies, a clip of a dataset of
`rahf prepare motion`, or what a motion model draws for the photograph, which is rendered at its own size;
the motion's grid is stretched to it.

Examples:
  rahf animate photo.jpg --spectrum tree.npz --out photo.mp4 --loop
  rahf animate photo.jpg --spectrum data/trees --clip test:3 --out photo.webp --seconds 5 --max-side 512
  rahf animate photo.jpg --model runs/motion_frequency --seed 3 --out photo.mp4 --loop
  rahf animate photo.jpg --spectrum tree.npz --interactive page.html     # drag it with mouse or finger"""


def add(commands) -> None:
    """Adds the command and its options."""
    parser = command(commands, "animate", run, "make a photograph move: a video, or a page to touch", _DESCRIPTION)
    parser.add_argument("photo", metavar="PHOTO", help="PNG, JPEG, WebP, … of any size")
    motion = parser.add_mutually_exclusive_group(required=True)
    motion.add_argument("--spectrum", metavar="PATH", help=".npz or .safetensors, or the directory of a motion dataset")
    motion.add_argument("--model", metavar="RUN", help="a trained motion model draws the motion")
    parser.add_argument("--clip", default=None, metavar="SPLIT:N", help="of a dataset (default: its first test clip)")
    parser.add_argument("--out", default=None, metavar="VIDEO", help=".mp4 (needs rahf[motion]), .gif or .webp")
    parser.add_argument("--interactive", default=None, metavar="PAGE.html", help="also, or only, write a page to touch")
    parser.add_argument("--renderer", default=None, metavar="RUN", help="a trained renderer draws the frames")
    parser.add_argument("--preview", default=None, metavar="FILE.png", help="slice over x and time, flow colours")
    parser.add_argument(
        "--save-spectrum", default=None, metavar="FILE", help="also write the motion as .npz or .safetensors"
    )
    parser.add_argument("--seconds", type=float, default=5.0, metavar="X", help="length of the video")
    parser.add_argument("--fps", type=float, default=30.0, metavar="X", help="frames per second")
    parser.add_argument("--loop", action="store_true", help="end as it begins; takes whole periods of the motion")
    parser.add_argument("--magnify", type=float, default=1.0, metavar="X", help="factor of all displacements")
    parser.add_argument("--mask", default=None, metavar="REGION.png", help="white moves, black stands still")
    parser.add_argument("--max-side", type=int, default=None, metavar="PIXELS", help="reduce the photograph first")
    parser.add_argument(
        "--damping", type=float, default=0.06, metavar="X", help="of the page: share of critical damping"
    )

    judge = parser.add_argument_group("a critic's view")
    judge.add_argument("--report", default=None, metavar="FILE.png", help="what models see in the frames, over time")
    judge.add_argument("--prompt", default=None, metavar="TEXT", help="what the photograph shows, for the critic")
    judge.add_argument("--critic", default=None, metavar="MODEL", help="scores frames by --prompt (default: lite)")
    judge.add_argument(
        "--saliency", default=None, metavar="MODEL", help="where people look (default: saliency-lite); none: leave out"
    )
    model = parser.add_argument_group("a motion model")
    model.add_argument("--seed", type=int, default=0, metavar="N", help="another seed, another motion")
    model.add_argument("--steps", type=int, default=50, metavar="N", help="of DDIM")
    model.add_argument("--guidance-scale", type=float, default=1.75, metavar="X", help="towards the photograph")
    model.add_argument(
        "--loop-scale", type=float, default=0.2, metavar="X", help="with --loop: self-guidance towards a loop; 0: none"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from data_pipelines.video import volume as volume_lib
    from rahf.core.errors import ArgumentError
    from rahf.motion import animate

    report = _report(args)
    if args.model is None:
        volume = animate.load_volume(args.spectrum, args.clip)
    else:
        if args.clip is not None:
            raise ArgumentError(f"--clip {args.clip} belongs to --spectrum")
        volume = animate.drawn_volume(
            args.model,
            args.photo,
            seed=args.seed,
            num_inference_steps=args.steps,
            guidance_scale=args.guidance_scale,
            loop_scale=args.loop_scale if args.loop else 0.0,
        )
    options = animate.AnimateOptions(args.seconds, args.fps, args.loop, args.magnify, args.max_side, args.damping)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=terminal.console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        shown = bar.add_task("frames", total=None)
        animated = animate.animate_photo(
            args.photo,
            volume,
            args.out,
            options,
            mask=args.mask,
            preview=args.preview,
            page=args.interactive,
            renderer=args.renderer,
            report=report,
            progress=lambda done, total: bar.update(shown, completed=done, total=total),
        )
    if args.save_spectrum is not None:
        volume_lib.save(args.save_spectrum, volume)
    for note in animated.notes:
        terminal.say(note)
    width, height = animated.size
    if args.out is not None:
        terminal.say(f"{args.out}: {animated.frames} frames of {width} x {height}, {animated.seconds:g} s")
    for path in (args.interactive, args.preview, args.report, args.save_spectrum):
        if path is not None:
            terminal.say(path)
    return 0


def _report(args: argparse.Namespace):
    """What `--report` and the options beside it ask for; None without it."""
    from rahf.core.errors import ArgumentError
    from rahf.motion.critique import Report
    from rahf.saliency import loading

    if args.report is None:
        for name in ("prompt", "critic", "saliency"):
            if getattr(args, name) is not None:
                raise ArgumentError(f"--{name} belongs to --report FILE.png")
        return None
    critic = args.critic or ("lite" if args.prompt else None)
    saliency = None if args.saliency == "none" else loading.load(args.saliency or "saliency-lite")
    return Report(args.report, critic, args.prompt or "", saliency)
