"""`rahf demo`."""

from __future__ import annotations

import argparse

from rahf.cli.parsing import command


def add(commands) -> None:
    """Adds the command to the parser."""
    parser = command(
        commands,
        "demo",
        run,
        "prepare, train, evaluate and predict on synthetic scenes",
        "Scenes that are there are not drawn again, and training goes on where it was.",
    )
    parser.add_argument("--workdir", default="runs/demo", help="run directory")
    parser.add_argument("--data", default="data/demo", help="where the synthetic scenes go")
    parser.add_argument("--config", default="configs/critic/demo.py", help="config file")
    parser.add_argument(
        "--train-scenes", type=int, default=None, help="number of training scenes (default: as the config needs)"
    )
    parser.add_argument("--steps", type=int, default=None, help="training steps (default: as in the config)")


def run(args: argparse.Namespace) -> int:
    """Runs it; the exit code."""
    from rahf.cli import demo_run

    return demo_run.run(args.workdir, args.data, args.config, args.train_scenes, args.steps)
