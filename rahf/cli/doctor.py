"""`rahf doctor`: prints what `rahf.cli.machine_checks` finds out."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING, Any

from rahf.cli.parsing import command
from rahf.core import names, terminal

if TYPE_CHECKING:
    from rahf.cli.machine_checks import Check

#: Verdict → sign and colour.
_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "broken": ("✗", "red"), "absent": ("–", "bright_black")}


def add(commands) -> None:
    """Adds the command and its options."""
    parser = command(
        commands,
        "doctor",
        run,
        "look at devices, versions, memory, disk, fused attention, compile cache and optional parts",
        "Imports what it vouches for. Exits with 1 if something is broken without which nothing works.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--workdir", default=".", help="where runs would go: its disk is measured")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code: 1 if something is broken without which nothing works."""
    from rahf.cli import machine_checks

    checks = machine_checks.examine(args.workdir)
    broken = [check for check in checks if check.verdict == "broken"]
    if args.json:
        print(json.dumps({"ok": not broken, "checks": [dataclasses.asdict(check) for check in checks]}, indent=2))
    else:
        print_table(checks)
    return 1 if broken else 0


def print_table(checks: list[Check], console: Any = None) -> None:
    """Prints checks as a table with a summary below it.

    Args:
      console: a `rich.console.Console`; None: stdout.
    """
    from rich.table import Table
    from rich.text import Text

    console = console or terminal.console()
    table = Table(box=None, pad_edge=False, show_header=False)
    section = ""
    for check in checks:
        if check.section != section:
            section = check.section
            table.add_row("", Text(section, style="bold"), "")
        table.add_row(Text(*_MARKS[check.verdict]), Text(f"  {check.name}"), Text(names.one_line(check.found)))
    console.print(table)
    broken = [check.name for check in checks if check.verdict == "broken"]
    warnings = sum(check.verdict == "warning" for check in checks)
    summary = f"{len(broken)} broken: {', '.join(broken)}" if broken else "everything essential works"
    console.print(Text(f"\n{summary}{f', {warnings} to look at' if warnings else ''}"))
