"""What the commands' parsers share."""

from __future__ import annotations

import argparse
from typing import Callable


class Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps examples as written and shows defaults."""


def command(
    commands, name: str, run: Callable[[argparse.Namespace], int], summary: str, description: str = ""
) -> argparse.ArgumentParser:
    """Adds a command.

    Args:
      commands: what `add_subparsers` returned.
      name: as typed.
      run: does it, called with the parsed arguments; returns the exit code.
      summary: one line for the list of commands; begins the description.
      description: more, for the command's own ``--help``.
    """
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.\n\n{description}",
        formatter_class=Formatter,
    )
    parser.set_defaults(run=run)
    return parser
