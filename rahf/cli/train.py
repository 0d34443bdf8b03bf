"""`rahf train`."""

from __future__ import annotations

import argparse

from rahf.cli.parsing import command


def add(commands) -> None:
    """Adds the command to the parser."""
    parser = command(
        commands,
        "train",
        run,
        "train the model of a config file, or resume",
        "Any field of the config is an option: --train.steps 10 --optimizer.learning-rate 1e-3 --data.path DIR.\n"
        "Give a config and --help to see them all: rahf train configs/critic/demo.py --help",
    )
    parser.add_argument("config", help="a Python file, or the name of one that comes with rahf")
    parser.add_argument("fields", nargs=argparse.REMAINDER, help="config fields to override")


def run(args: argparse.Namespace) -> int:
    """Trains; returns the exit code: 0, or 128 + n if signal n stopped the run."""
    from rahf.config import overrides

    config = overrides.parse(args.config, args.fields)
    from rahf import registry  # JAX only now, so that a wrong command fails fast
    from rahf.training import distributed

    with distributed.joined():
        finished = registry.train(config)
    return 0 if finished.interrupted_by is None else 128 + finished.interrupted_by
