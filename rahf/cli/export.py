"""`rahf export`."""

from __future__ import annotations

import argparse

from rahf.cli.parsing import command


def add(commands) -> None:
    """Adds the command and its options."""
    parser = command(
        commands,
        "export",
        run,
        "write a model as one self-contained file",
        "The file holds functions, weights, vocabulary, preprocessing and model card. rahf.load and every command\n"
        "that takes a model read it, with jax, flatbuffers, numpy, sentencepiece, safetensors and Pillow alone.\n"
        "Example: rahf export runs/demo demo.rahf",
    )
    parser.add_argument("model", help="run directory or checkpoint directory")
    parser.add_argument("file", metavar="FILE.rahf", help="file to write")
    parser.add_argument("--scores-only", action="store_true", help="leave out heatmaps and words")
    parser.add_argument("--bf16", action="store_true", help="store weights in 16 bits, half as large")
    parser.add_argument("--name", default=None, help="name of the model (default: of the folder it was trained in)")
    parser.add_argument("--force", action="store_true", help="replace FILE.rahf even if it is no export")
    parser.add_argument("--license", default=None, help="license of the weights (default: what is recorded about them)")
    parser.add_argument("--about", default=None, metavar="FILE", help="Markdown file to put into the model card")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from rahf.core.errors import ArgumentError
    from rahf.core.files import read_regular_text

    about = None
    if args.about is not None:
        try:
            about = read_regular_text(args.about)
        except (OSError, UnicodeDecodeError) as error:
            raise ArgumentError(f"--about {args.about}: cannot be read as text ({error})") from error
    from rahf import registry  # JAX only now, so that a wrong command fails fast
    from rahf.critic.export import write as critic_write
    from rahf.saliency.export import write as saliency_write

    if registry.family_name(args.model) == "saliency":
        if args.scores_only:
            raise ArgumentError("--scores-only: a saliency model gives no scores; leave it out")
        options = dict(bf16=args.bf16, weight_license=args.license, about=about, name=args.name)
        saliency_write.export_run(args.model, args.file, force=args.force, **options)
        return 0
    options = dict(
        scores_only=args.scores_only, bf16=args.bf16, weight_license=args.license, about=about, name=args.name
    )
    critic_write.export_run(args.model, args.file, force=args.force, **options)
    return 0
