"""The command line: one module per command, each with `add(commands)`, which parses, calls and prints.

The functions that run a command import what they need, so that ``rahf --help`` imports only the standard library.
"""

#: Modules of the commands, in the order of ``rahf --help``.
COMMANDS = ("demo", "prepare", "train", "evaluate", "predict", "export", "mask", "select", "score", "import_", "doctor")
