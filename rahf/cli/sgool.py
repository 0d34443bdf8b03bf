"""`rahf sgool`."""

from __future__ import annotations

import argparse
import sys

from rahf.cli.parsing import command
from rahf.core import terminal

_DESCRIPTION = """\
The noise that sampling starts from is optimised through the whole sampling, so that a critic's score of the picture
and of its most salient part rises (SGOOL; with --weight 0 it is DOODL). Memory does not grow with --steps. Each update
costs about four samplings.

Writes DIR/seed0.png, DIR/seed0-before0.png, …, energy.csv and energy.png (the curve).

Example:
  rahf sgool models/sd15 --prompt "a red cat" --critic runs/demo --saliency saliency-lite --out steered/"""


def add(commands) -> None:
    """Adds the command and its options."""
    summary = "optimise a picture's noise for a critic and for what people look at"
    parser = command(commands, "sgool", run, summary, _DESCRIPTION)
    parser.add_argument("model", metavar="MODEL", help="model directory of rahf import stable-diffusion")
    parser.add_argument("--prompt", required=True, metavar="TEXT")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to create")
    parser.add_argument(
        "--critic", required=True, metavar="MODEL", help="whose score is raised; judge with another one"
    )
    parser.add_argument("--score", default="overall", help="plausibility, alignment, aesthetics or overall")
    parser.add_argument(
        "--saliency", default=None, metavar="MODEL", help="says where people look (default: the critic)"
    )
    parser.add_argument("--heatmap", default=None, help="which of its heatmaps (default: its first)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N")
    parser.add_argument("--iterations", type=int, default=50, metavar="N", help="updates of the noise")
    parser.add_argument("--steps", type=int, default=50, metavar="N", help="of each sampling")
    parser.add_argument("--guidance-scale", type=float, default=7.5, metavar="X", help="of classifier-free guidance")
    parser.add_argument("--weight", type=float, default=0.5, metavar="X", help="share of the salient part, 0 to 1")
    parser.add_argument("--refresh-every", type=int, default=1, metavar="N", help="updates between two looks")
    parser.add_argument("--parts", type=int, default=1, metavar="N", help="most salient parts of a picture")
    parser.add_argument("--keep-every", type=int, default=10, metavar="N", help="updates between intermediate pictures")
    parser.add_argument("--backend", choices=("edict", "ddim"), default="edict", help="ddim keeps every step's latents")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from rahf.diffusion.latents.doodl import DoodlOptions
    from rahf.diffusion.latents.sgool import SaliencyOptions
    from rahf.steer import sgool_files

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=terminal.console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        shown = bar.add_task("updates", total=args.iterations)
        result = sgool_files.sgool_files(
            args.model,
            args.prompt,
            args.out,
            args.critic,
            score=args.score,
            saliency=args.saliency,
            heatmap=args.heatmap,
            seeds=args.seeds,
            options=DoodlOptions(
                iterations=args.iterations,
                num_inference_steps=args.steps,
                guidance_scale=args.guidance_scale,
                backend=args.backend,
            ),
            salient=SaliencyOptions(weight=args.weight, refresh_every=args.refresh_every, parts=args.parts),
            keep_every=args.keep_every,
            progress=lambda done, total, values: bar.update(
                shown, completed=done, description=f"updates, energy {values.mean():.4f}"
            ),
        )
    first, last = result.energy[0].mean(), result.energy[-1].mean()
    terminal.say(f"energy {first:.4f} → {last:.4f}; pictures, energy.csv and energy.png in {args.out}")
    return 0
