"""The `rahf` command: finds the command, runs it, and turns errors into a line and an exit code."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence

from rahf.cli import COMMANDS, interrupt
from rahf.cli.parsing import Formatter
from rahf.core import compile_cache, exit_codes, files, former_names, names, process, terminal
from rahf.core.errors import RahfError
from rahf.core.version import __version__

_DESCRIPTION = """\
Rich feedback on generated images: where a picture is implausible or misses its prompt, which words it
misses, and how good it is.

  rahf demo                                              everything below on synthetic scenes, in a quarter of an hour
  rahf annotate --images DIR --prompts FILE --db FILE    let people mark your pictures in the browser
  rahf prepare synthetic --out data/demo                 make a dataset of synthetic scenes
  rahf prepare feedback --annotations FILE --images DIR --out DIR    make a dataset of your own pictures and ratings
  rahf train configs/critic/demo.py                      train; Ctrl-C saves, the same command resumes
  rahf evaluate runs/demo --data data/demo               metrics, intervals, HTML report
  rahf report A B --data data/demo --out report.html     models, also of others, or generators side by side
  rahf predict runs/demo IMAGE... --prompt "a red cat"   overlays, JSON, summary
  rahf mask runs/demo IMAGE --prompt "a red cat" --out MASK.png      what to repaint
  rahf select runs/demo CANDIDATES.jsonl --out MANIFEST.jsonl        the best of many, with reasons
  rahf generate MODEL --prompt "a red cat" --out DIR                 pictures from prompts, guided if wanted
  rahf animate PHOTO --spectrum FILE --out VIDEO.mp4                 a photograph that moves

Exit codes: 0 all done, 1 failed, 2 wrong usage, 3 done but for some inputs that were refused and listed,
128 + n stopped by signal n.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("rahf", description=_DESCRIPTION, formatter_class=Formatter)
    parser.add_argument("--version", action="version", version=f"rahf {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in COMMANDS:
        importlib.import_module(f"rahf.cli.{name}").add(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line (None: this program's own) and returns its exit code."""
    if arguments is None and sys.argv[1:2] in (["demo"], ["train"], ["evaluate"]):
        process.restart()  # with the allocator settings that long computations need
    if arguments is None:
        interrupt.watch()
    with terminal.lasting_streams() as (stdout, stderr):
        code = _run(arguments)
        stdout.flush()
        if stdout.error is None:
            return code
        if isinstance(stdout.error, BrokenPipeError):  # as in `rahf … | head`: the reader of the output has ended
            return code or 128 + signal.SIGPIPE
        print(f"rahf: the output cannot be written: {stdout.error}", file=stderr)
        return code or exit_codes.FAILED


def _run(arguments: Sequence[str] | None) -> int:
    args = _parser().parse_args(arguments)
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    compile_cache.enable()
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if os.environ.get("RAHF_TRACEBACK") or not isinstance(error, (RahfError, OSError)):
            raise
        print(f"rahf: {names.printable(_message(error))}", file=sys.stderr)
        return exit_codes.FAILED


def _message(error: Exception) -> str:
    """The message of an expected error. That of a full disk says what to do, whoever met it."""
    if isinstance(error, OSError) and not isinstance(error, RahfError) and error.errno in files.FULL:
        return files.disk_full_message(error.filename or "a file", error.strerror)
    if isinstance(error, FileExistsError) and not isinstance(error, RahfError) and error.filename:
        return f"{error.filename}: exists and is no folder; give another name"
    return str(error)


sys.modules[__name__].__class__ = former_names.CallableModule  # rahf.cli.main(arguments) in version 0.1

if __name__ == "__main__":
    sys.exit(main())
