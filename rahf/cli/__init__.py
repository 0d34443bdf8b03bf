"""One module per command, each with `add(commands)`. They parse, call and print; nothing heavy is imported before
a command runs, so that ``rahf --help`` is quick."""

#: In the order of ``rahf --help``.
NAMES = ("demo", "prepare", "train", "evaluate", "predict", "export", "mask", "select", "score", "import_", "doctor")
