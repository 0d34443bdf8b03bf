"""`rahf import`: published models become model directories."""

from __future__ import annotations

import argparse
from typing import Any

from rahf.cli.parsing import Formatter, command
from rahf.core import terminal


def add(commands) -> None:
    """Adds the command and its options."""
    group = commands.add_parser(
        "import", help="turn a published model into a model directory", formatter_class=Formatter
    )
    kinds = group.add_subparsers(title="kinds of models", metavar="KIND", required=True)
    parser = command(
        kinds,
        "richhf-torch",
        richhf_torch,
        "the public PyTorch checkpoint of multi-head RichHF",
        "Needs PyTorch (pip install rahf[torch]), which reads the weights without running pickled code.",
    )
    parser.add_argument("file", metavar="FILE.pt", help="the published checkpoint")
    parser.add_argument("out", metavar="OUT", help="directory to create; evaluate and predict accept it")
    parser.add_argument("--license", default="unknown", help="of the weights; stored in model.json")
    parser.add_argument("--tokenizer", default="google-t5/t5-base", help="SentencePiece file, T5 folder or hub id")
    parser.add_argument(
        "--vit-heads",
        type=int,
        default=None,
        help="attention heads of the ViT, which the file does not tell (default: one per 64 channels)",
    )
    parser = command(
        kinds,
        "exported",
        exported,
        "an exported file, or a critic that comes with rahf, to train on from there",
        "Example:\n  rahf import exported lite runs/lite-start\n"
        "  rahf train configs/critic/lite_finetune.py --data.path data/mine",
    )
    parser.add_argument("file", metavar="FILE|NAME", help="file of rahf export, or name of a shipped critic")
    parser.add_argument("out", metavar="OUT", help="directory to create")
    _add_baselines(kinds)
    parser = command(
        kinds,
        "hpsv2",
        hpsv2,
        "HPS v2 off the shelf (CLIP ViT-H/14 in OpenCLIP's layout): one number for all four scores",
        "The published .pt is read by PyTorch's weights-only reader (pip install rahf[torch]), which runs no code;\n"
        "every tensor must fit by name and shape.",
    )
    parser.add_argument("source", metavar="SOURCE", help="the file, or a folder or hub id (xswu/HPSv2) that holds it")
    parser.add_argument("out", metavar="OUT", help="directory to create")
    parser.add_argument("--version", choices=("2.0", "2.1"), default="2.1", help="which file of a folder or hub id")
    parser.add_argument("--license", default=None, help="of the weights (default: what their model card says)")
    parser.add_argument("--revision", default=None, help="branch, tag or commit of a hub id")
    parser.add_argument("--tokenizer", default=None, help="folder or hub id (default: that of OpenCLIP's ViT-H/14)")
    parser.add_argument(
        "--vit-heads", type=int, default=None, help="attention heads of the image tower (default: one per 64, to 16)"
    )
    parser = command(
        kinds,
        "stable-diffusion",
        stable_diffusion,
        "Stable Diffusion 1.x, 2.x, inpainting or XL, for rahf generate",
        "From the layout of diffusers: model_index.json with a folder per part; safetensors whole or in parts,\n"
        "PyTorch's .bin by its weights-only reader (pip install rahf[torch]). Every tensor must fit by name and shape.",
    )
    parser.add_argument("source", metavar="FOLDER|HUB_ID", help="folder or hub id in the layout of diffusers")
    parser.add_argument("out", metavar="OUT", help="directory to create")
    parser.add_argument("--license", default=None, help="of the weights (default: what their model card says)")
    parser.add_argument("--revision", default=None, help="branch, tag or commit of a hub id")
    parser.add_argument("--variant", default=None, help="of the weights, such as fp16 (default: full precision)")


def _add_baselines(kinds) -> None:
    """The baselines of the paper's tables, from folders or hub ids in the Hugging Face layout."""
    for name, function, summary, description in (
        ("clip", clip, "CLIP off the shelf: cosine as alignment score, its gradient as misalignment map", ""),
        ("pickscore", pickscore, "PickScore off the shelf (CLIP ViT-H/14): one number for all four scores", ""),
        (
            "resnet50",
            resnet50,
            "ResNet-50 of ImageNet; its heads are untrained",
            "A file of torchvision's is accepted, too. To train it:\n"
            "rahf train configs/critic/baseline_resnet50.py --start.vision SOURCE",
        ),
    ):
        parser = command(kinds, name, function, summary, description)
        parser.add_argument("source", metavar="SOURCE", help="folder or hub id in the Hugging Face layout")
        parser.add_argument("out", metavar="OUT", help="directory to create")
        parser.add_argument("--license", default=None, help="of the weights (default: what their model card says)")
        parser.add_argument("--revision", default=None, help="branch, tag or commit of a hub id")
        if name != "resnet50":
            parser.add_argument("--tokenizer", default=None, help="folder or hub id (default: beside the weights)")
        if name == "clip":
            parser.add_argument("--no-heatmap", action="store_true", help="scores only")


def exported(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from rahf.critic.published import exported as module

    folder = module.import_exported(args.file, args.out)
    terminal.say(f"model directory {folder}: start from it with rahf train CONFIG --start.model {folder}")
    return 0


def clip(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from rahf.critic.published import baselines

    heatmap = not args.no_heatmap
    _print_folder(baselines.import_clip(args.source, args.out, heatmap=heatmap, **_options(args, "tokenizer")))
    return 0


def pickscore(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from rahf.critic.published import baselines

    _print_folder(baselines.import_pickscore(args.source, args.out, **_options(args, "tokenizer")))
    return 0


def hpsv2(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from rahf.critic.published import baselines

    options = _options(args, "version", "vit_heads", "tokenizer")
    _print_folder(baselines.import_hpsv2(args.source, args.out, **options))
    return 0


def resnet50(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from rahf.critic.published import baselines

    folder = baselines.import_resnet(args.source, args.out, **_options(args))
    terminal.say(
        f"model directory {folder}; its heads are random, so it predicts nothing before training: "
        f"rahf train configs/critic/baseline_resnet50.py --start.vision {args.source}"
    )
    return 0


def stable_diffusion(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from rahf.diffusion.published import import_folder

    result = import_folder.import_stable_diffusion(args.source, args.out, **_options(args, "variant"))
    for note in result.notes:
        terminal.say(f"rahf: {note}", stderr=True)
    terminal.say(f"model directory {result.folder}: try rahf generate {result.folder} --prompt TEXT --out DIR")
    return 0


def _options(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: getattr(args, name) for name in ("license", "revision", *names)}


def _print_folder(folder) -> None:
    terminal.say(f"model directory {folder}: try rahf predict {folder} IMAGE --prompt TEXT")


def richhf_torch(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from rahf.critic.published import richhf_torch

    options = dict(license=args.license, tokenizer=args.tokenizer, vit_heads=args.vit_heads)
    _print_folder(richhf_torch.import_checkpoint(args.file, args.out, **options))
    return 0
