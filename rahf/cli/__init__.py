"""The command line: one module per command, each with `add(commands)`, which parses, calls and prints.

The functions that run a command import what they need, so that ``rahf --help`` imports only the standard library.
"""

import importlib
from typing import Any

#: Modules of the commands, in the order of ``rahf --help``.
COMMANDS = (
    "demo",
    "annotate",
    "prepare",
    "train",
    "evaluate",
    "compare",
    "report",
    "predictions",
    "predict",
    "look",
    "edit",
    "export",
    "mask",
    "select",
    "score",
    "generate",
    "gazefusion",
    "sgool",
    "steering",
    "animate",
    "import_",
    "doctor",
)


def __getattr__(name: str) -> Any:
    """`rahf.cli.main`, which version 0.1 called as a function: `from rahf import cli; cli.main(arguments)`."""
    if name != "main":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module("rahf.cli.main")
