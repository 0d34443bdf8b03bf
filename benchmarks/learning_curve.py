"""How a critic learns from more and more annotated pictures, and whether it helps to annotate uncertain ones first.

    rahf import exported lite runs/lite-start
    python benchmarks/learning_curve.py --data data/rehearsal --start runs/lite-start --out curve
    python benchmarks/learning_curve.py --data data/rehearsal --start runs/lite-start --out curve \
        --from-scratch --orders random uncertainty --shares .03 .1 --epochs 10

The tower is frozen and its maps are cached in --out, so a training takes minutes on a core. Each share of the training
split is learnt anew from the start; larger shares contain the smaller ones. By "random" the pictures are drawn at
random. By "uncertainty" the first share is the same, and each further one adds those of a pool of which the critic
trained on the share before is least sure (`rahf annotate --order uncertainty`). --from-scratch starts from the tower
alone, so that nothing has seen the labels before. Prints one JSON line for each share: metrics on the test split with
95% intervals, and paired differences, to the start, or to the random order of the same share.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from data_pipelines import store
from data_pipelines.loading.examples import example, stack
from data_pipelines.loading.labels import Labels
from data_pipelines.loading.loader import train_loader
from rahf import config as config_lib
from rahf.annotate import critic_marks
from rahf.core import process
from rahf.core.batch import Batch
from rahf.critic import tower_cache
from rahf.critic.evaluation.eval_step import make_eval_step
from rahf.critic.task import CriticTask
from rahf.metrics import EvaluationMetrics, RegionMetrics, bootstrap_intervals, paired_differences
from rahf.nn import functional
from rahf.training import sharding
from rahf.training import state as state_lib
from rahf.training.step import make_train_step

#: Metrics that are printed.
SHOWN = (
    "heatmaps/implausibility/cc",
    "heatmaps/misalignment/cc",
    "regions/implausibility/mask_iou",
    "regions/implausibility/cell_accuracy",
    "keywords_constrained/f1",
    "scores/mean/plcc",
)
_CONFIG = pathlib.Path(__file__).resolve().parents[1] / "configs/critic/lite_finetune.py"
_EVAL_BATCH = 25


class Chosen:
    """Some records of a split."""

    def __init__(self, source: Sequence, positions: np.ndarray):
        self.source, self.positions = source, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int):
        return self.source[int(self.positions[index])]


class Split:
    """A split with the tower's outputs of its pictures.

    Attributes:
      records: as stored.
      cache: of the tower.
    """

    def __init__(self, task: CriticTask, name: str, out: pathlib.Path):
        self.task, self.records = task, store.open_split(task.config.data.path, name)
        config = dataclasses.replace(task.config, workdir=str(out / name))
        self.cache = tower_cache.TowerCache(config, self.records, f"{name} of {task.config.data.path}")

    def training_batches(self, positions: np.ndarray) -> Iterator[Batch]:
        """Batches of some of its pictures for ever, shuffled."""
        config = self.task.config
        source = Chosen(self.records, positions)
        side, seed = config.model.image_size, config.train.seed
        with train_loader(config.data, side, self.task.tokenizer, seed, source=source, pixels=False) as loader:
            for batch in loader:
                yield self.cache.replace_images(batch._replace(index=positions[batch.index]))

    def batches(self, positions: np.ndarray) -> Iterator[Batch]:
        """Its pictures in order; the last batch is filled up with the last picture."""
        data, side = self.task.config.data, self.task.config.model.image_size
        for first in range(0, len(positions), _EVAL_BATCH):
            some = positions[first : first + _EVAL_BATCH]
            some = np.concatenate([some, np.full(_EVAL_BATCH - len(some), some[-1])])
            rows = [example(self.records[int(i)], int(i), data, side, self.task.tokenizer, pixels=False) for i in some]
            yield self.cache.replace_images(stack(rows))


class Curve:
    """Trains on shares of a training split and measures on the test split."""

    def __init__(self, data: str, start: str, out: pathlib.Path, from_scratch: bool, epochs: float, most_steps: int):
        base = config_lib.load(str(_CONFIG))
        rate = 1.5e-3 if from_scratch else base.optimizer.learning_rate
        self.config = dataclasses.replace(
            base,
            data=dataclasses.replace(base.data, path=data),
            start=dataclasses.replace(base.start, model=start),
            optimizer=dataclasses.replace(
                base.optimizer, schedule="constant", learning_rate=rate, ema_decay=0.95, warmup_steps=10
            ),
        )
        self.epochs, self.most_steps = epochs, most_steps
        self.task = CriticTask.from_config(self.config)
        self.setup = state_lib.setup(self.task)
        params = self.task.start(self.setup.shapes.params).params
        self.train, self.test = Split(self.task, "train", out), Split(self.task, "test", out)
        for split in (self.train, self.test):
            split.cache.fill(self.setup.graphdef, params, lambda line: print(f"# {line}", flush=True))
        kept = {name: part for name, part in params.items() if not from_scratch or tower_cache.of_tower(name)}
        self.start_params = jax.device_get(kept)  # arrays of the device are donated to the first state
        self.step = make_train_step(self.task, self.setup)
        self.predict = make_eval_step(self.setup.graphdef, self.config, self.task.suffix_id, generate=False)
        self.labels = Labels(self.test.records)

    def trained(self, positions: np.ndarray) -> tuple[functional.Params, int, float]:
        """Parameters learnt from some pictures, the number of steps, and the seconds."""
        steps = min(self.most_steps, max(1, round(self.epochs * len(positions) / self.config.data.batch_size)))
        state = state_lib.create(self.task, self.setup, self.start_params)
        begin = time.perf_counter()
        for _, batch in zip(range(steps), self.train.training_batches(positions)):
            state, _ = self.step(state, sharding.to_devices(batch, self.setup.mesh))
        jax.block_until_ready(state)
        return state.best_params, steps, time.perf_counter() - begin

    def measured(self, params: functional.Params) -> tuple[EvaluationMetrics, RegionMetrics]:
        """Metrics on the test split; maps are compared at the labels' own size."""
        metrics, regions = EvaluationMetrics(), RegionMetrics()
        positions = np.arange(len(self.test.records))
        for batch in self.test.batches(positions):
            predicted = jax.device_get(self.predict(params, batch)).prediction
            for row, position in enumerate(batch.index):
                truth, one = self.labels[position], slice(row, row + 1)
                part = Batch(
                    *(None if field is None else np.asarray(field)[one] for field in batch._replace(image=None))
                )
                labels = (predicted.word_probabilities[one] <= 0.5).astype(np.int32)
                scores, maps = predicted.scores[one], predicted.heatmaps[one]
                probability = predicted.word_probabilities[one]
                metrics.update(part, maps, scores, None, labels, probability, truth.heatmaps[None])
                regions.update(maps, truth.heatmaps[None], part.heatmap_mask, part.index, [truth.annotators])
        return metrics, regions

    def least_sure(self, params: functional.Params, pool: np.ndarray, count: int) -> np.ndarray:
        """The pictures of a pool of which parameters are least sure."""
        unsure = []
        for batch in self.train.batches(pool):
            predicted = jax.device_get(self.predict(params, batch)).prediction
            for row in range(_EVAL_BATCH):
                words = predicted.word_probabilities[row][batch.word_end[row] >= 0]
                unsure.append(critic_marks.uncertainty_of([*np.moveaxis(predicted.heatmaps[row], -1, 0), words]))
        return pool[np.argsort(-np.array(unsure[: len(pool)]), kind="stable")[:count]]


def line(metrics: tuple, reference: tuple | None) -> dict:
    """Metrics with intervals, and differences to a reference."""
    result: dict = {}
    for place, family in enumerate(metrics):
        values = family.compute()
        bounds = family.intervals() if isinstance(family, EvaluationMetrics) else bootstrap_intervals(family)
        result |= {n: [round(v, 3) for v in (values[n], *bounds[n])] for n in SHOWN if n in values and n in bounds}
        if reference is None:
            continue
        parts = (
            [(family, reference[place])]
            if isinstance(family, RegionMetrics)
            else [
                (getattr(family, n), getattr(reference[place], n))
                for n in ("scores", "heatmaps", "keywords_constrained")
            ]
        )
        for one, other in parts:
            for name, difference in paired_differences(one, other).items():
                if name in SHOWN:
                    result[f"difference of {name}"] = [
                        round(v, 3) for v in (difference.value, difference.low, difference.high)
                    ]
    return result


def main() -> None:
    """Parses, trains, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="prepared dataset with the splits train and test")
    parser.add_argument("--start", required=True, help="run directory of the critic to begin with")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the cached maps")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.03, 0.1, 0.3, 1.0])
    parser.add_argument("--orders", nargs="+", default=["random"], choices=("random", "uncertainty"))
    parser.add_argument("--from-scratch", action="store_true", help="keep only the tower of --start")
    parser.add_argument("--epochs", type=float, default=4.0)
    parser.add_argument("--most-steps", type=int, default=150)
    parser.add_argument("--pool", type=int, default=600, help="pictures of which the least sure ones are looked for")
    parser.add_argument("--seed", type=int, default=0, help="of the random order")
    args = parser.parse_args()
    curve = Curve(args.data, args.start, args.out, args.from_scratch, args.epochs, args.most_steps)
    order = np.random.default_rng(args.seed).permutation(len(curve.train.records))
    begun = None
    if not args.from_scratch:
        state = state_lib.create(curve.task, curve.setup, curve.start_params)
        begun = curve.measured(state.best_params)
        print(json.dumps({"pictures": 0, **line(begun, None)}), flush=True)
    random_ones: dict[float, tuple] = {}
    of_first: functional.Params | None = None  # the first share is the same in every order
    for name in args.orders:
        chosen, params = np.zeros(0, int), None
        for share in sorted(args.shares):
            count = round(share * len(order))
            if params is None and of_first is not None:
                chosen, params = order[:count], of_first
                continue
            if name == "uncertainty" and params is not None:
                pool = order[~np.isin(order, chosen)][: args.pool]
                chosen = np.concatenate([chosen, curve.least_sure(params, pool, count - len(chosen))])
            else:
                chosen = order[:count]
            params, steps, seconds = curve.trained(chosen)
            of_first = params if of_first is None else of_first
            metrics = curve.measured(params)
            reference = random_ones.get(share) if name == "uncertainty" else begun
            if name == "random":
                random_ones[share] = metrics
            about = {"order": name, "share": share, "pictures": count, "steps": steps, "seconds": round(seconds)}
            print(json.dumps({**about, "seed": args.seed, **line(metrics, reference)}), flush=True)


if __name__ == "__main__":
    process.restart()
    main()
