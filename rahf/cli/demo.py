"""`rahf demo`: the complete way on synthetic scenes: prepare, train, evaluate, predict. `make demo` runs it."""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import time

from rahf.cli.parsing import command
from rahf.core import process, terminal

TRAIN_SCENES = 32_000
_PREDICTED_IMAGES = 4
#: Drawing fewer scenes takes no longer than starting worker processes.
_SCENES_WORTH_WORKERS = 1000


def add(commands) -> None:
    """Adds the command and its options."""
    parser = command(
        commands,
        "demo",
        run,
        "prepare, train, evaluate and predict on synthetic scenes",
        "Scenes that exist are not drawn again, and training goes on where it was.",
    )
    parser.add_argument("--workdir", default="runs/demo", help="run directory")
    parser.add_argument("--data", default="data/demo", help="where the synthetic scenes go")
    parser.add_argument("--config", default="configs/critic/demo.py", help="config file")
    parser.add_argument(
        "--train-scenes", type=int, default=TRAIN_SCENES, help="number of training scenes that are drawn"
    )
    parser.add_argument("--steps", type=int, default=None, help="training steps (default: as in the config)")


def run(args: argparse.Namespace) -> int:
    """Runs the command.

    Returns:
      Exit code: that of `rahf predict`, or 128 + n if signal n stopped the training.
    """
    from rich.text import Text

    from data_pipelines.synthetic import prepare
    from rahf import config as config_lib

    console = terminal.console()
    config = config_lib.load(args.config)
    config = dataclasses.replace(config, workdir=args.workdir, data=dataclasses.replace(config.data, path=args.data))
    if args.steps is not None:
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=args.steps))
    console.rule(Text("1  prepare", style="bold"))
    cores = os.cpu_count() or 1
    workers = cores if cores > 1 and args.train_scenes >= _SCENES_WORTH_WORKERS else 0
    counts = prepare.prepare(args.data, train=args.train_scenes, workers=workers)
    splits = ", ".join(f"{split} {count}" for split, count in counts.items())
    console.print(f"{args.data}: {splits}", markup=False, soft_wrap=True)

    console.rule(Text("2  train", style="bold"))
    process.dispatch_in_line()
    from rahf import registry  # JAX only now: preparing forks worker processes

    start = time.perf_counter()
    finished = registry.train(config)
    console.print(f"training took {(time.perf_counter() - start) / 60:.1f} minutes")
    if finished.interrupted_by is not None:
        return 128 + finished.interrupted_by

    console.rule(Text("3  evaluate", style="bold"))
    from rahf.critic.evaluation import run as evaluation_report

    evaluation_report.run(args.workdir, split="test", console=console)

    console.rule(Text("4  predict", style="bold"))
    exit_code = _predict(args.workdir, args.data, console)
    run_folder = pathlib.Path(args.workdir).resolve()
    console.rule(Text("done", style="bold"))
    report = run_folder / "report" / "test" / "index.html"
    for name, path in (("run directory", run_folder), ("report", report), ("predictions", run_folder / "predictions")):
        console.print(f"{name:13}  {path}", markup=False, soft_wrap=True)
    return exit_code


def _predict(workdir: str, data: str, console) -> int:
    """Writes a few pictures of the test split as files and predicts them, as a user would. Returns the exit code."""
    from data_pipelines import store
    from rahf import images
    from rahf.critic import predict

    folder = pathlib.Path(workdir) / "predictions"
    folder.mkdir(parents=True, exist_ok=True)
    split = store.open_split(data, "test")
    files, prompts = [], []
    for number in range(min(_PREDICTED_IMAGES, len(split))):
        record = split[number]
        file = folder / f"scene{number}.{images.check_header(record.image).format.lower()}"
        file.write_bytes(record.image)
        files.append(str(file))
        prompts.append(record.prompt)
    return predict.predict(workdir, files, prompts, out=str(folder), json_file=None, console=console)
