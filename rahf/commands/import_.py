"""`rahf import`: published models become model directories."""

from __future__ import annotations

import argparse

from rahf.commands.parsing import Formatter, command


def add(commands) -> None:
    """Adds the command to the parser."""
    group = commands.add_parser("import", help="turn a published model into a model directory", formatter_class=Formatter)
    kinds = group.add_subparsers(title="kinds of models", metavar="KIND", required=True)
    parser = command(
        kinds,
        "richhf-torch",
        richhf_torch,
        "the public PyTorch checkpoint of multi-head RichHF",
        "Needs PyTorch (pip install rahf[torch]), which reads the weights without running what is pickled there.",
    )
    parser.add_argument("file", metavar="FILE.pt", help="the published checkpoint")
    parser.add_argument("out", metavar="OUT", help="directory to make; evaluate and predict accept it")
    parser.add_argument("--license", default="unknown", help="of the weights, as you were told; kept in model.json")
    parser.add_argument("--tokenizer", default="google-t5/t5-base", help="SentencePiece file, T5 folder or hub id")


def richhf_torch(args: argparse.Namespace) -> int:
    """Runs it; the exit code."""
    from rahf.pretrained import richhf_torch

    made = richhf_torch.import_checkpoint(args.file, args.out, license=args.license, tokenizer=args.tokenizer)
    print(f"model directory {made}: try rahf predict {made} IMAGE --prompt TEXT")
    return 0
