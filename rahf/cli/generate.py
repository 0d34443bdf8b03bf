"""`rahf generate`."""

from __future__ import annotations

import argparse
import sys

from rahf.cli.parsing import command
from rahf.core import terminal

_DESCRIPTION = """\
MODEL is a model directory of `rahf import stable-diffusion`, or a run of a diffusion family. Every prompt is drawn
with every seed: DIR/000-seed0.png, …, and DIR/contact_sheet.png, a row per prompt. Each PNG holds its parameters as
JSON (text "rahf"). A seed gives the same picture whatever the batch.

Examples:
  rahf generate models/sd15 --prompt "a red cat" --seeds 0 1 2 3 --out cats/
  rahf generate models/sd15 --prompt "a red cat" --critic runs/demo --score overall --critic-scale 0.2 --out guided/
  rahf generate models/sd15-inpainting --prompt "a red cat" --image photo.png --mask mask.png --out repainted/
  rahf generate models/sd21 --prompt "a red cat" --saliency map.png --controlnet models/gazefusion --out seen/"""


def add(commands) -> None:
    """Adds the command and its options."""
    parser = command(commands, "generate", run, "draw pictures from prompts with a diffusion model", _DESCRIPTION)
    parser.add_argument("model", metavar="MODEL", help="model directory, run directory or checkpoint")
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", action="append", metavar="TEXT", help='may be repeated; "" is unconditional')
    prompts.add_argument("--prompts", metavar="FILE", help="text file with one prompt per line")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to create")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N", help="each draws another picture")
    parser.add_argument("--steps", type=int, default=50, metavar="N", help="of the scheduler")
    parser.add_argument("--guidance-scale", type=float, default=None, metavar="X", help="of classifier-free guidance")
    parser.add_argument("--negative-prompt", default=None, metavar="TEXT", help="what guidance leads away from")
    parser.add_argument("--height", type=int, default=None, metavar="PIXELS", help="a multiple of 8 (default: its own)")
    parser.add_argument("--width", type=int, default=None, metavar="PIXELS", help="likewise")
    parser.add_argument("--batch-size", type=int, default=4, metavar="N", help="pictures at once")
    parser.add_argument("--eta", type=float, default=None, metavar="X", help="noise of DDIM, 0 to 1")
    parser.add_argument(
        "--scheduler",
        choices=("ddim", "ddpm", "euler", "dpmsolver++", "pndm"),
        default=None,
        help="instead of the model's own",
    )
    parser.add_argument("--karras", action="store_true", help="spread the steps of euler or dpmsolver++")
    parser.add_argument(
        "--lora",
        action="append",
        default=None,
        metavar="FILE[:SCALE]",
        help="low-rank adapters, of peft, diffusers or kohya; may be repeated",
    )
    start = parser.add_argument_group("from a picture")
    start.add_argument("--image", default=None, metavar="FILE", help="to start from, or to repaint")
    start.add_argument("--mask", default=None, metavar="FILE", help="white: repaint, black: keep; as rahf mask draws")
    start.add_argument("--strength", type=float, default=None, metavar="X", help="share of the steps, 0 to 1")
    saliency = parser.add_argument_group("where people shall look (GazeFusion)")
    saliency.add_argument(
        "--saliency", "--smap", default=None, metavar="MAP", help="picture, white where people shall look"
    )
    saliency.add_argument(
        "--controlnet", default=None, metavar="FOLDER", help="that reads it, in the form of diffusers"
    )
    saliency.add_argument(
        "--saliency-scale", type=float, nargs="+", default=[1.0], metavar="X", help="strength; one, or one per step"
    )
    critic = parser.add_argument_group("guidance by a critic")
    critic.add_argument("--critic", default=None, metavar="MODEL", help="whose score is raised; judge with another one")
    critic.add_argument("--score", default="overall", help="plausibility, alignment, aesthetics or overall")
    critic.add_argument("--critic-scale", type=float, default=0.1, metavar="X", help="strength; 0.05 to 0.5 is usual")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from rahf.steer import generate_files
    from rahf.steer.generate_files import GenerateOptions

    generate_files.silence_repeats()
    options = GenerateOptions(
        num_inference_steps=args.steps,
        **{name: getattr(args, name) for name in vars(GenerateOptions()) if name in vars(args)}
        | {"lora": tuple(args.lora or ()), "saliency_scale": tuple(args.saliency_scale)},
    )
    prompts = args.prompt or generate_files.prompts_of_file(args.prompts)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=terminal.console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        shown = bar.add_task("steps", total=None)
        files = generate_files.generate_files(
            args.model,
            prompts,
            args.out,
            args.seeds,
            options,
            progress=lambda done, total: bar.update(shown, completed=done, total=total),
        )
    terminal.say(f"{len(files)} pictures and contact_sheet.png in {args.out}")
    return 0
