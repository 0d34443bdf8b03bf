"""The whole way on synthetic scenes: prepare, train, evaluate, predict. What `make demo` runs."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import time

from rich.console import Console

from rahf import config as config_lib
from rahf.core import process

TRAIN_SCENES = 32_000
_PICTURES = 4
_MANY = 1000  # scenes; drawing fewer takes no longer than starting processes


def run(workdir: str, data: str, config_file: str, train_scenes: int | None = None, steps: int | None = None) -> int:
    """Runs the demo. Scenes that are there are not drawn again, and training goes on where it was.

    Args:
      workdir: run directory; the report goes to `report/test`, pictures to `predictions`.
      data: where the synthetic dataset lies or goes.
      config_file: see `rahf.config.load`.
      train_scenes: number of training scenes, None: TRAIN_SCENES.
      steps: training steps, None: as in the config.

    Returns:
      Exit code: 0, or 128 + n if training was stopped by signal n.
    """
    from data_pipelines.synthetic import prepare

    console = Console(highlight=False)
    config = config_lib.load(config_file)
    config = dataclasses.replace(config, workdir=workdir, data=dataclasses.replace(config.data, path=data))
    if steps is not None:
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=steps))
    console.rule("[bold]1  prepare")
    scenes = train_scenes or TRAIN_SCENES
    cores = os.cpu_count() or 1
    counts = prepare.prepare(data, train=scenes, workers=cores if cores > 1 and scenes >= _MANY else 0)
    console.print(f"{data}: " + ", ".join(f"{split} {count}" for split, count in counts.items()))

    console.rule("[bold]2  train")
    process.dispatch_in_line()  # JAX only now: preparing forks
    from rahf.training import loop

    started = time.perf_counter()
    finished = loop.train(config)
    console.print(f"training took {(time.perf_counter() - started) / 60:.1f} minutes")
    if finished.interrupted_by is not None:
        return 128 + finished.interrupted_by

    console.rule("[bold]3  evaluate")
    from rahf.critic.evaluation import run as evaluation_report

    evaluation_report.run(workdir, split="test", console=console)

    console.rule("[bold]4  predict")
    failed = _predict(workdir, data, console)
    run_folder = pathlib.Path(workdir).resolve()
    console.rule("[bold]done")
    console.print(f"run directory  {run_folder}", soft_wrap=True)
    console.print(f"report         {run_folder / 'report' / 'test' / 'index.html'}", soft_wrap=True)
    console.print(f"predictions    {run_folder / 'predictions'}", soft_wrap=True)
    return failed


def _predict(workdir: str, data: str, console: Console) -> int:
    """Predicts a few pictures of the test split, given as files as a user would."""
    from data_pipelines import store
    from rahf import images
    from rahf.critic import predict

    folder = pathlib.Path(workdir) / "predictions"
    folder.mkdir(parents=True, exist_ok=True)
    source = store.open_split(data, "test")
    files, prompts = [], []
    for number in range(min(_PICTURES, len(source))):
        record = source[number]
        file = folder / f"scene{number}.{images.check_header(record.image).format.lower()}"
        file.write_bytes(record.image)
        files.append(str(file))
        prompts.append(record.prompt)
    return predict.predict(workdir, files, prompts, out=str(folder), json_file=None, console=console)
