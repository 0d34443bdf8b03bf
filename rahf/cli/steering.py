"""`rahf steering`."""

from __future__ import annotations

import argparse
import sys

from rahf.cli.parsing import command
from rahf.core import exit_codes, terminal

_DESCRIPTION = """\
Compares ways to steer a model, and models that learned from feedback, over prompt lists. All systems draw the same
prompts from the same noise: MODEL in its own way (plain), with universal guidance by a critic's or a CLIP's energy
(guidance), with the noise optimised for it (doodl), and for what people look at, too (sgool); and further models, each
in its own way. Judges score every picture. One that steered, or that a model learned from, is marked: its numbers are
biased.

Lists: DrawBench (CSV: Prompts, Category), PartiPrompts (TSV), CSP, DailyDallE, any CSV or TSV with a column of
prompts, or plain text, one prompt a line.

Writes DIR/table.md (all prompts, and by category: means, 95% intervals, paired differences to the first system, shares
of prompts won), DIR/boxes/*.png, DIR/contact_sheet.png, DIR/evaluation.json, and all pictures with their parameters.
Ctrl-C at any time: the same command goes on; lists, seeds, systems and judges may be added.

Examples:
  rahf steering models/sd15 --prompts drawbench.csv --guide models/clip --judges models/pickscore lite --out steered/
  rahf steering models/sd15 --prompts prompts.txt --models draft=runs/draft ddpo=runs/ddpo --judges lite --out all/"""


def add(commands) -> None:
    """Adds the command and its options."""
    summary = "compare steered and fine-tuned generators over prompt lists, by judges that took no part"
    parser = command(commands, "steering", run, summary, _DESCRIPTION)
    parser.add_argument("model", metavar="MODEL", help="model directory of rahf import stable-diffusion, or a run")
    parser.add_argument("--prompts", nargs="+", required=True, metavar="FILE", help="lists of prompts")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to create, or to go on with")
    parser.add_argument(
        "--judges", nargs="+", default=[], metavar="MODEL[:SCORE,…]", help="score the pictures (default: all scores)"
    )
    parser.add_argument(
        "--guide", default=None, metavar="MODEL[:SCORE]", help="whose score is raised (default: cosine or overall)"
    )
    parser.add_argument(
        "--systems",
        nargs="+",
        choices=("plain", "guidance", "doodl", "sgool"),
        default=None,
        help="ways to draw with MODEL; the first is compared with (default: all four with --guide, else plain)",
    )
    parser.add_argument(
        "--models", nargs="+", default=[], metavar="NAME=MODEL", help="further models, each in its own way"
    )
    parser.add_argument(
        "--took-part",
        nargs="+",
        default=[],
        metavar="SYSTEM=JUDGE",
        help="a judge that chose the pictures a system was trained on (critics of draft and ddpo runs are found)",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N", help="of every prompt")
    parser.add_argument(
        "--vary-seeds", action="store_true", help="noise of its own for every prompt: prompt n draws seed + 1000 n"
    )
    parser.add_argument("--limit", type=int, default=None, metavar="N", help="only the first N prompts of each list")
    parser.add_argument("--category-column", default=None, metavar="NAME", help="of the tables, such as Challenge")
    parser.add_argument("--batch-size", type=int, default=4, metavar="N", help="pictures at once")
    parser.add_argument("--dry-run", action="store_true", help="say what there is to do and what it costs, do nothing")
    drawing = parser.add_argument_group("drawing")
    drawing.add_argument("--steps", type=int, default=50, metavar="N", help="of the scheduler")
    drawing.add_argument("--guidance-scale", type=float, default=7.5, metavar="X", help="of classifier-free guidance")
    drawing.add_argument("--negative-prompt", default=None, metavar="TEXT", help="what guidance leads away from")
    drawing.add_argument(
        "--height", type=int, default=None, metavar="PIXELS", help="a multiple of 8 (default: its own)"
    )
    drawing.add_argument("--width", type=int, default=None, metavar="PIXELS", help="likewise")
    guided = parser.add_argument_group("universal guidance (guidance)")
    guided.add_argument("--strength", type=float, default=0.1, metavar="X", help="in shares of the noise; 0.05 to 0.5")
    guided.add_argument("--recurrences", type=int, default=1, metavar="N", help="visits of each step")
    guided.add_argument("--backward-steps", type=int, default=0, metavar="N", help="of backward guidance")
    noise = parser.add_argument_group("optimised noise (doodl, sgool)")
    noise.add_argument("--iterations", type=int, default=50, metavar="N", help="updates of the noise")
    noise.add_argument(
        "--sampling-steps", type=int, default=None, metavar="N", help="of each sampling (default: as --steps)"
    )
    noise.add_argument("--backend", choices=("edict", "ddim"), default="edict", help="ddim keeps every step's latents")
    noise.add_argument("--grad-scale", type=float, default=1.0, metavar="X", help="of the gradient, before it is cut")
    noise.add_argument("--clip", type=float, default=1e-3, metavar="X", help="largest value of the gradient")
    noise.add_argument("--learning-rate", type=float, default=1.0, metavar="X", help="of the updates")
    noise.add_argument("--saliency", default=None, metavar="MODEL", help="says where people look (default: the guide)")
    noise.add_argument("--heatmap", default=None, help="which of its heatmaps (default: its first)")
    noise.add_argument("--weight", type=float, default=0.5, metavar="X", help="share of the salient part, 0 to 1")
    noise.add_argument("--refresh-every", type=int, default=1, metavar="N", help="updates between two looks")
    noise.add_argument("--parts", type=int, default=1, metavar="N", help="most salient parts of a picture")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from rahf.steer import generate_files, steering_files

    generate_files.silence_repeats()
    options = _options(args)
    work = steering_files.plan(args.model, args.prompts, args.out, options)
    for line in steering_files.describe(work):
        terminal.say(line, stderr=not args.dry_run)
    if args.dry_run:
        return exit_codes.SOME_REFUSED if work.refused else 0
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.1f}/{task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    shown: dict[str, int] = {}
    with Progress(*columns, console=terminal.console(stderr=True), disable=not sys.stderr.isatty()) as bar:

        def progress(name: str, done: float, total: int) -> None:
            if name not in shown:
                shown[name] = bar.add_task(name, total=total)
            bar.update(shown[name], completed=done, total=total)

        _, results = steering_files.steering_files(args.model, args.prompts, args.out, options, progress, work)
    terminal.console().print(steering_files.table(results))
    terminal.say(f"table.md, boxes, contact_sheet.png, evaluation.json and all pictures in {args.out}")
    return exit_codes.SOME_REFUSED if work.refused else 0


def _options(args: argparse.Namespace):
    from rahf.diffusion.latents.doodl import DoodlOptions
    from rahf.diffusion.latents.sgool import SaliencyOptions
    from rahf.diffusion.sample.options import GuidanceOptions
    from rahf.steer.steering_files import SteeringOptions
    from rahf.steer.systems import METHODS, SystemOptions

    names = ("guidance_scale", "negative_prompt", "height", "width", "saliency", "heatmap")
    doodl = ("iterations", "guidance_scale", "backend", "grad_scale", "clip", "learning_rate")
    steps = args.steps if args.sampling_steps is None else args.sampling_steps
    system = SystemOptions(
        num_inference_steps=args.steps,
        guidance=GuidanceOptions(scale=args.strength, recurrences=args.recurrences, backward_steps=args.backward_steps),
        doodl=DoodlOptions(num_inference_steps=steps, **{name: getattr(args, name) for name in doodl}),
        salient=SaliencyOptions(weight=args.weight, refresh_every=args.refresh_every, parts=args.parts),
        **{name: getattr(args, name) for name in names},
    )
    methods = args.systems or (METHODS if args.guide is not None else ("plain",))
    return SteeringOptions(
        methods=tuple(methods),
        models=tuple(_pair("models", text, "NAME=MODEL") for text in args.models),
        guide=args.guide,
        judges=tuple(args.judges),
        took_part=tuple(_pair("took-part", text, "SYSTEM=JUDGE") for text in args.took_part),
        seeds=tuple(args.seeds),
        vary_seeds=args.vary_seeds,
        limit=args.limit,
        category_column=args.category_column,
        batch_size=args.batch_size,
        system=system,
    )


def _pair(option: str, text: str, form: str) -> tuple[str, str]:
    from rahf.core.errors import ArgumentError

    first, equals, second = text.partition("=")
    if not (first and equals and second):
        raise ArgumentError(f"{option}: expected {form}, found {text!r}")
    return first, second
