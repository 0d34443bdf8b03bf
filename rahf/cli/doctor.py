"""`rahf doctor`."""

from __future__ import annotations

import argparse

from rahf.cli.parsing import command


def add(commands) -> None:
    """Adds the command to the parser."""
    parser = command(
        commands,
        "doctor",
        run,
        "look at devices, versions, memory, disk, fused attention, compile cache and optional parts",
        "Exits with 1 if something is broken without which nothing works.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--workdir", default=".", help="where runs would go: its disk is measured")


def run(args: argparse.Namespace) -> int:
    """Runs it; the exit code."""
    from rahf.cli import doctor_checks

    return doctor_checks.run(args.json, args.workdir)
