"""Measures whole training runs: whether loading hides behind the steps, and what the rehearsal data teach.

    python benchmarks/gpu_training.py overlap --data DIR [--preset fast] [--batch 32] [--seconds 60] [config fields]
    python benchmarks/gpu_training.py rehearsal --data DIR --workdir DIR [--seconds 300] [config fields]

`overlap` trains with the loop of `rahf train`, without checkpoints, for some time, then measures the step alone on a
batch that stays on the device, and the loader alone. `rehearsal` is `rahf train` of the critic for the rehearsal data,
stopped after some seconds if need be, and `rahf evaluate` on the test split. Each prints one JSON line.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import pathlib
import signal
import statistics
import sys
import tempfile
import threading
import time
from typing import Any
from unittest import mock

import jax
import measuring

from data_pipelines import store
from rahf import config as config_lib
from rahf.cli.main import main as rahf_command
from rahf.config import Config, overrides
from rahf.critic.task import CriticTask
from rahf.text import load_tokenizer
from rahf.training import loop, prefetch, sharding
from rahf.training import state as state_lib
from rahf.training.progress import read_rows
from rahf.training.step import make_train_step

ROOT = pathlib.Path(__file__).resolve().parent.parent
#: Critics for the rehearsal data, the best first; which of them there is decides.
REHEARSALS = (
    "configs/lite.py",
    "configs/critic/lite.py",
    "configs/critic/rehearsal_finetune.py",
    "configs/critic/rehearsal.py",
)
#: What is reported of the test metrics, with the names of metrics.json.
METRICS = (
    "scores/mean/plcc",
    "scores/plausibility/plcc",
    "scores/alignment/plcc",
    "scores/aesthetics/plcc",
    "scores/overall/plcc",
    "heatmaps/implausibility/cc",
    "heatmaps/implausibility/auc_judd",
    "heatmaps/misalignment/cc",
    "keywords/f1",
    "keywords_constrained/f1",
)


class NoCheckpoints:
    """In the place of a run's checkpoints: writing gigabytes is not what is measured here."""

    latest_step, notices = None, ()

    def __init__(self, folder: pathlib.Path, keep: int):
        self.folder = folder

    def best_metrics(self) -> None:
        """None: there is no best checkpoint."""

    def wait(self, *_: Any) -> None:
        """Does nothing; so do `save`, `save_best`, `discard`, `abandon` and `close`."""

    save = save_best = discard = abandon = close = wait


def overlap(config: Config, seconds: float) -> dict[str, Any]:
    """Images/s of a training run, of its step alone and of its loader alone; how long the loop waits for batches."""
    waits: list[float] = []

    class Watched(prefetch.Prefetch):
        """Counts how long the loop waits, and stops the run after `seconds`, its first two steps not counted."""

        def take(self):
            start = time.perf_counter()
            batch = super().take()
            waits.append(time.perf_counter() - start)
            if len(waits) == 3:
                threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM)).start()
            return batch

    task = CriticTask.from_config(config)
    with mock.patch.object(loop, "Checkpointer", NoCheckpoints), mock.patch.object(loop, "Prefetch", Watched):
        finished = loop.train(task)
    rows = [row for row in read_rows(pathlib.Path(config.workdir) / "metrics.jsonl") if "images_per_second" in row]
    rates = [row["images_per_second"] for row in rows[1:-1] or rows]  # compilation, and a shorter last one
    run, step, loader = statistics.median(rates), step_rate(task), loader_rate(task, min(seconds, 10.0))
    return {
        "steps": finished.step,
        "workers": config.data.workers,
        "run_images_per_second": round(run, 1),
        "step_images_per_second": round(step, 1),
        "loader_images_per_second": round(loader, 1),
        "share_of_the_step_alone": round(run / step, 3),
        "share_of_the_slower": round(run / min(step, loader), 3),
        "wait_ms_median": round(1e3 * statistics.median(waits[2:] or waits), 3),
    }


def step_rate(task: CriticTask) -> float:
    """Images/s of the task's step on one batch that stays on the devices."""
    setup = state_lib.setup(task)
    size = task.config.data.batch_size
    held = {"state": state_lib.create(task, setup)}
    batch = sharding.to_devices(measuring.fake(task.config, size), setup.mesh)
    step = make_train_step(task, setup)

    def call():
        held["state"], metrics = step(held["state"], batch)
        return metrics

    jax.block_until_ready(call())
    return size / statistics.median(measuring.per_call(call, 1.0, 3))


def loader_rate(task: CriticTask, seconds: float) -> float:
    """Images/s of the loader while nothing else runs."""
    with task.train_loader() as batches:
        for _ in range(2):
            next(batches)
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            next(batches)
            count += 1
        return count * task.config.data.batch_size / (time.perf_counter() - start)


def rehearsal_config() -> pathlib.Path:
    """The first config file of REHEARSALS that is there, with the package of the tower that it starts from."""
    for file in (ROOT / name for name in REHEARSALS if (ROOT / name).is_file()):
        tower = config_lib.load(str(file)).start.vision
        if not tower or "/" in tower or pathlib.Path(tower).exists() or importlib.util.find_spec(tower):
            return file
    raise RuntimeError(f"none of {', '.join(REHEARSALS)} is there with what it starts from")


def rehearsal(
    file: pathlib.Path, data: str, workdir: pathlib.Path, seconds: float, limit: int | None, fields: list[str]
) -> dict[str, Any]:
    """Trains a config file on data until its last step or for `seconds`, and evaluates on the test split."""
    changes = ["--workdir", str(workdir), "--data.path", data, *fields]
    config = overrides.parse(str(file), changes)
    start = getattr(config, "start", None)
    from_random = bool(start and start.model) and not pathlib.Path(start.model).exists()
    if from_random:  # the critic that it is to start from is not on this machine
        changes += ["--start.model", "", "--start.fresh"]
    pieces = load_tokenizer(store.tokenizer_path(data)).vocab_size
    if config.data.tokenizer == "dataset" and config.model.t5.vocab_size < pieces:
        changes += ["--model.t5.vocab-size", str(pieces)]  # a config for data with fewer pieces
    if config.data.workers == 0 and jax.default_backend() != "cpu":
        changes += ["--data.workers", str(workers())]
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    began = time.perf_counter()
    code = rahf_command(["train", str(file), *changes])
    timer.cancel()
    trained = time.perf_counter() - began
    if code not in (0, 128 + signal.SIGTERM):
        raise RuntimeError(f"rahf train ended with {code}")
    rows = [row for row in read_rows(workdir / "metrics.jsonl") if "images_per_second" in row]
    model = workdir if code == 0 else newest(workdir)
    evaluate = ["evaluate", str(model), "--data", data, "--report", str(workdir / "report"), "--examples", "0"]
    code = rahf_command([*evaluate, *(["--limit", str(limit)] if limit else [])])
    if code:
        raise RuntimeError(f"rahf evaluate ended with {code}")
    metrics = json.loads((workdir / "report" / "metrics.json").read_text())["metrics"]
    return {
        "config": str(file.relative_to(ROOT)),
        "random_start": from_random,
        "steps": rows[-1]["step"] if rows else 0,
        "of_steps": config.train.steps,
        "training_seconds": round(trained, 1),
        "images_per_second": round(statistics.median(r["images_per_second"] for r in rows[1:] or rows), 1),
        "metrics": {name: round(metrics[name], 4) for name in METRICS if metrics.get(name) is not None},
    }


def newest(workdir: pathlib.Path) -> pathlib.Path:
    """The last checkpoint of a run that was stopped."""
    steps = [folder for folder in (workdir / "checkpoints" / "latest").iterdir() if folder.name.isdigit()]
    return max(steps, key=lambda folder: int(folder.name))


def workers() -> int:
    """Data worker processes that leave two cores to the loop."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - 2)


def main() -> None:
    """Parses, trains, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("overlap", "rehearsal"))
    parser.add_argument("--data", required=True, metavar="DIR", help="prepared dataset")
    parser.add_argument("--preset", default="fast", help="overlap: a config file's name or a short name")
    parser.add_argument("--batch", type=int, default=None, help="overlap: examples; default: the config's batch size")
    parser.add_argument("--seconds", type=float, default=60.0, help="of training")
    parser.add_argument("--workdir", default="", metavar="DIR", help="rehearsal: of the run")
    parser.add_argument("--steps", type=int, default=None, help="rehearsal: fewer steps than the config's")
    parser.add_argument("--limit", type=int, default=None, help="rehearsal: evaluate only so many examples")
    args, fields = parser.parse_known_args()
    result = {"benchmark": args.kind, "device": jax.local_devices()[0].device_kind, "jax": jax.__version__}
    if args.kind == "overlap":
        with tempfile.TemporaryDirectory() as folder:
            changes = ["--data.path", args.data, "--data.tokenizer", "dataset", "--workdir", folder]
            changes += ["--start.vision", "", "--start.text", "", "--start.model", "", "--train.log-every", "10"]
            changes += ["--train.steps", "1000000", "--train.eval-every", "0"]
            if jax.default_backend() != "cpu":
                changes += ["--data.workers", str(workers())]
            config = measuring.preset(args.preset, args.batch, [*changes, *fields])
            result |= {"preset": args.preset, "batch": config.data.batch_size, **overlap(config, args.seconds)}
    else:
        fields += ["--train.steps", str(args.steps)] if args.steps else []
        workdir = pathlib.Path(args.workdir)
        result |= rehearsal(rehearsal_config(), args.data, workdir, args.seconds, args.limit, fields)
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(main())
