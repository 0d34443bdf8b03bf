"""`rahf gazefusion page|evaluate`."""

from __future__ import annotations

import argparse

from rahf.cli.parsing import Formatter, command, width_and_height
from rahf.core import terminal

_DESCRIPTION = """\
Draw a target map in the browser; measure whether pictures drawn for it are looked at there.
rahf prepare gazefusion makes training data, rahf train trains, rahf generate --saliency draws.

Examples:
  rahf gazefusion page --out target.html
  rahf gazefusion evaluate models/sd21 --controlnet models/gazefusion --prompts prompts.txt --maps maps/*.png \\
      --judge runs/other-saliency --guide saliency-lite --out compared/"""


def add(commands) -> None:
    """Adds the command and its two sub-commands."""
    parser = commands.add_parser(
        "gazefusion",
        help="draw target maps in the browser; measure whether pictures are looked at there",
        description=_DESCRIPTION,
        formatter_class=Formatter,
    )
    kinds = parser.add_subparsers(metavar="KIND", required=True)
    _add_page(kinds)
    _add_evaluate(kinds)


def _add_page(kinds) -> None:
    parser = command(
        kinds,
        "page",
        page,
        "a page to draw a target map in: one HTML file, which asks for nothing",
        "Soft spots, discs, rectangles, and regions to be avoided, in their order. It saves NAME.png, and the\n"
        "regions as NAME.avoid.png, NAME being that of the page.",
    )
    parser.add_argument("--out", required=True, metavar="PAGE.html", help="page to write")
    parser.add_argument("--size", default="512x512", metavar="WIDTHxHEIGHT", help="of the map, in pixels")
    parser.add_argument("--image", default=None, metavar="FILE", help="picture below the map")


def _add_evaluate(kinds) -> None:
    parser = command(
        kinds,
        "evaluate",
        evaluate,
        "draw with and without target maps, and let a saliency model judge that took no part",
        "CC, KLD, SIM and NSS between target and predicted saliency, with 95% intervals over drawings; with regions\n"
        "to be avoided (NAME.avoid.png beside NAME.png) the share of the prediction inside them. Pictures of one\n"
        "seed begin from the same noise in all columns. The judge must not have made the ControlNet's training data.",
    )
    parser.add_argument("model", metavar="MODEL", help="model directory, or a GazeFusion run, which brings its own")
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", action="append", metavar="TEXT", help="may be repeated")
    prompts.add_argument("--prompts", metavar="FILE", help="text file with one prompt per line")
    parser.add_argument(
        "--maps",
        nargs="+",
        required=True,
        metavar="MAP",
        help="pictures, white where to look; or folders of such, one per prompt",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to create")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N", help="of every prompt")
    parser.add_argument("--controlnet", default=None, metavar="FOLDER", help="in the form of diffusers")
    parser.add_argument(
        "--scales", type=float, nargs="*", default=[1.0, 0.7], metavar="X", help="of the ControlNet, a column each"
    )
    parser.add_argument("--judge", default="saliency-lite", metavar="MODEL", help="saliency model that judges")
    parser.add_argument("--guide", default=None, metavar="MODEL", help="saliency model for the column without training")
    parser.add_argument("--guide-scale", type=float, default=0.2, metavar="X", help="its strength")
    parser.add_argument("--critic", default=None, metavar="MODEL", help="also its score of alignment, higher is better")
    parser.add_argument(
        "--steps", type=int, default=50, metavar="N", help="of the scheduler", dest="num_inference_steps"
    )
    parser.add_argument("--guidance-scale", type=float, default=7.5, metavar="X", help="of classifier-free guidance")
    parser.add_argument("--height", type=int, default=None, metavar="PIXELS", help="a multiple of 8 (default: its own)")
    parser.add_argument("--width", type=int, default=None, metavar="PIXELS", help="likewise")
    parser.add_argument("--batch-size", type=int, default=4, metavar="N", help="pictures at once")


def page(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from rahf import images
    from rahf.saliency import target_page

    width, height = width_and_height(args.size)
    picture = None if args.image is None else images.load_rgb(args.image)
    target_page.write_page(args.out, (height, width), picture)
    terminal.say(f"{args.out}: open it in a browser")
    return 0


def evaluate(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from rahf.steer import gazefusion_files, generate_files
    from rahf.steer.gazefusion_files import EvaluateOptions

    generate_files.silence_repeats()
    options = EvaluateOptions(
        **{name: getattr(args, name) for name in vars(EvaluateOptions()) if name != "scales"}, scales=tuple(args.scales)
    )
    prompts = args.prompt or generate_files.prompts_of_file(args.prompts)
    gazefusion_files.evaluate_files(args.model, prompts, args.maps, args.out, args.seeds, options)
    return 0
