"""`rahf mask`."""

from __future__ import annotations

import argparse

from rahf.cli.parsing import command

_DESCRIPTION = """\
A mask is an 8 bit grey PNG at the picture's size: white pixels are to be repainted, black ones are to be kept. The
heatmap is thresholded, small regions are dropped, the rest grows by a disc, holes are closed, and the edge may be
feathered. If no region is left, the mask is black and the command says so: leave such a picture as it is.

Lengths are in image heights (0.025 is 1/40), areas in shares of the image, so that they fit any size.

Examples:
  rahf mask runs/demo picture.png --prompt "a red star" --out mask.png --overlay
  rahf mask runs/demo *.png --out masks/ --threshold 0.25 --seeds 0.5 --latent-grid 8"""


def add(commands) -> None:
    """Adds the command and its options."""
    parser = command(commands, "mask", run, "draw masks of what should be repainted, for inpainting", _DESCRIPTION)
    parser.add_argument(
        "model", help="run directory, checkpoint directory, exported file, name of a shipped model, or hub id"
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="PNG, JPEG, WebP, … of any size")
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", default=None, help="of all pictures (default: IMAGE's .txt file beside it)")
    prompts.add_argument("--prompts", default=None, metavar="FILE", help="text file with one prompt per line")
    parser.add_argument("--out", required=True, metavar="MASK.png", help="file, or folder for NAME_mask.png")
    parser.add_argument("--which", choices=("implausibility", "misalignment"), default="implausibility", help="heatmap")
    parser.add_argument("--overlay", action="store_true", help="also write picture, heatmap and mask side by side")
    parser.add_argument(
        "--latent-grid",
        type=int,
        default=None,
        metavar="PIXELS",
        help="also write the mask with one pixel per cell of a latent grid (8 for Stable Diffusion); a cell that is "
        "touched at all counts",
    )
    parser.add_argument("--json", default=None, metavar="FILE", help="coverage, regions and notes as JSON")
    shape = parser.add_argument_group("how a heatmap becomes a mask")
    for name, value, text in _OPTIONS:
        shape.add_argument(f"--{name}", type=float, default=value, metavar="X", help=text)


#: Fields and defaults of rahf.steer.masks.MaskOptions, which is not imported for --help. A test compares them.
_OPTIONS = (
    ("threshold", 0.3, "mark values from this one on; 0.3 is about one annotator of three; lower marks more"),
    ("seeds", None, "keep only regions whose maximum reaches this value (0.5 with --threshold 0.25)"),
    ("min-area", 0.001, "drop regions smaller than this share of the image; raise it against specks"),
    ("dilation", 0.025, "grow by a disc of this radius, so that the edges of a fault are repainted, too"),
    ("max-hole", 1.0, "close enclosed holes up to this share of the image; 0 closes none"),
    ("feather", 0.0, "fade over this width around the mask, against visible seams; 0.02 is soft"),
    ("warn-above", 0.6, "warn if the mask covers more than this share"),
)


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from rahf.steer import mask_files
    from rahf.steer.masks import MaskOptions

    names = [name.replace("-", "_") for name, _, _ in _OPTIONS]
    written, errors = mask_files.mask_files(
        args.model,
        args.images,
        args.out,
        prompt=args.prompt,
        prompts_file=args.prompts,
        which=args.which,
        options=MaskOptions(**{name: getattr(args, name) for name in names}),
        latent_grid=args.latent_grid,
        overlay=args.overlay,
        json_file=args.json,
    )
    return mask_files.report(written, errors)
