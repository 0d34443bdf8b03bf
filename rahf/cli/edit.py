"""`rahf edit`."""

from __future__ import annotations

import argparse

from rahf.cli.parsing import command
from rahf.core import terminal

#: Error of a step of the inversion that shows in the picture; latents have a standard deviation of about 1.
_INEXACT = 0.02

_DESCRIPTION = """\
Finds the word of the prompt whose attention in the diffusion model agrees best with where people look, and gives its
part of the picture more contrast, brightness or a colour (Augsal). The picture is brought back over a few steps of
noise, edited there, and finished. An edit that changes a property of the part by more than --limit standard deviations
is made weaker and done again, at most --rounds times; then the picture stays as it is.

Writes into --out: NAME.edited.png, NAME.before.png (without the edit, as the model shows it), NAME.mask.png,
NAME.before-after.png side by side, and edit.json with the properties and the share of looks inside the part.

Examples:
  rahf edit photo.jpg --model models/sd15 --prompt "a cat on a sofa" --property contrast --out edits/
  rahf edit photo.jpg --model models/sd15 --prompt "a cat" --property color --color red --word cat --out red/
  rahf edit photo.jpg --model runs/augsal --prompt "a cat" --property brightness --saliency gaze.png --out edits/"""


def add(commands) -> None:
    """Adds the command and its options."""
    summary = "make the part of a picture that people look at stand out more"
    parser = command(commands, "edit", run, summary, _DESCRIPTION)
    parser.add_argument("image", metavar="IMAGE", help="the picture")
    parser.add_argument(
        "--model", required=True, metavar="MODEL", help="of rahf import stable-diffusion, or a run of Augsal"
    )
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="what the picture shows; its words are parts")
    parser.add_argument("--out", required=True, metavar="DIR", help="where the results go")
    parser.add_argument("--property", default="contrast", help="contrast, brightness or color")
    parser.add_argument("--word", default=None, metavar="WORD", help="the word to edit (default: where people look)")
    parser.add_argument("--color", default="red", metavar="WORD", help="with --property color: which")
    parser.add_argument("--strength", type=float, default=0.1, metavar="X", help="at first, above 0 up to 1")
    parser.add_argument("--limit", type=float, default=2.0, metavar="X", help="standard deviations of a property")
    parser.add_argument("--rounds", type=int, default=40, metavar="N", help="most edits; each weaker by a tenth")
    parser.add_argument(
        "--saliency",
        default="saliency-lite",
        metavar="MODEL",
        help="a saliency model, or a map: white where people look",
    )
    parser.add_argument(
        "--size", type=int, default=None, metavar="N", help="longer side in pixels (default: the model's)"
    )
    parser.add_argument("--steps", type=int, default=50, metavar="N", help="of the scheduler")
    parser.add_argument(
        "--attention-steps", type=int, default=6, metavar="N", help="least noisy steps that are looked at"
    )
    parser.add_argument("--finish-steps", type=int, default=2, metavar="N", help="steps from the edit to the picture")
    parser.add_argument(
        "--fit-gamma", default=None, metavar="DIR", help="pictures from which brightness in latents is found"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from rahf.saliency.augsal import edit_files
    from rahf.saliency.augsal.editor import EditOptions

    options = EditOptions(
        property=args.property,
        strength=args.strength,
        word=args.word,
        color=args.color,
        num_inference_steps=args.steps,
        attention_steps=args.attention_steps,
        finish_steps=args.finish_steps,
        max_rounds=args.rounds,
        limit=args.limit,
    )
    result = edit_files.edit_file(
        args.model,
        args.image,
        args.prompt,
        args.out,
        options,
        saliency=args.saliency,
        size=args.size,
        fit_gamma=args.fit_gamma,
    )
    if not result.strength:
        terminal.say(
            f"{result.word}: none of {result.rounds} edits stays within {args.limit:g} standard deviations; the "
            "picture is unchanged. Take a lower --strength, or a higher --limit"
        )
    else:
        terminal.say(f"{result.word}: {args.property}, strength {result.strength:.3g} after {result.rounds} edits")
    if result.error > _INEXACT:
        terminal.say(
            f"a step of the way back misses its latents by {result.error:.2g}, so the picture changes outside of the "
            "edited part, too; take more --steps"
        )
    terminal.say(f"before and after: {args.out}")
    return 0
