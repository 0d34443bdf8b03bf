"""Whether feedback helps a generator: guidance, repair and selection, judged by a critic that took no part in them.

    python benchmarks/circle.py --generator runs/demo_diffusion --critic runs/demo --held-out runs/demo_seed1 \\
        --data data/demo --prompts 64 --out runs/circle

The prompts are the first distinct ones of a split that no model was trained on. Prompts and seeds determine all
results.

* guidance: one picture per prompt and seed, unguided, and with the same noise guided by the critic's score;
* repair: scenes with planted damage; the part that the critic marks is repainted four times, and the best of these and
  the original is kept. Shown besides: the mean of the four repaintings, without a choice;
* selection: eight pictures per prompt, the best by the critic against the mean of all eight, which is the expected
  score of one drawn at random.

Both critics score every result. The one that guided or chose is biased; the result is that of the held-out one,
trained with another seed. Intervals: 95%, percentile bootstrap over prompts of the paired difference.

Prints one line of JSON; OUT gets circle.json, table.md, circle.png, and a picture of every result.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import pathlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import circle_report
import numpy as np
import tyro
from circle_report import Comparison, Shown
from PIL import Image
from rich.console import Console
from rich.progress import track

import rahf
from data_pipelines import store
from rahf import diffusion, steer
from rahf import images as image_lib
from rahf.core import compile_cache
from rahf.core.batch import SCORES
from rahf.core.errors import CheckpointError
from rahf.critic import energy
from rahf.critic.provenance import ModelMismatch
from rahf.diffusion import GuidanceOptions
from rahf.scoring import files

CANDIDATES, REPAINTED = 8, 4


@dataclasses.dataclass(frozen=True)
class Options:
    """Runs the study. The options of guidance were chosen on other prompts (--split dev)."""

    generator: str = "runs/demo_diffusion"
    critic: str = "runs/demo"  # guides and chooses
    held_out: str = "runs/demo_seed1"  # only judges; trained with another seed
    data: str = "data/demo"  # made by rahf prepare synthetic
    split: str = "test"
    prompts: int = 64
    out: str = "runs/circle"
    seed: int = 0
    batch: int = 16  # pictures at a time
    num_inference_steps: int = 50  # of DDIM
    guidance_scale: float = 2.0  # of classifier-free guidance
    score: str = "overall"  # that guides and selects
    scale: float = 0.3  # of the critic's guidance
    window: tuple[float, float] = (0.1, 1.0)
    recurrences: int = 1
    backward_steps: int = 0
    through_denoiser: bool = True
    threshold: float = 0.3  # the picture is repainted where the implausibility heatmap is at least this
    only: tuple[str, ...] = ("guidance", "repair", "selection")


class Study:
    """The three models, and what all parts share."""

    def __init__(self, options: Options):
        self.options = options
        self.generator = diffusion.load(options.generator)
        self.critic, self.held_out = rahf.load(options.critic), rahf.load(options.held_out)
        if self.critic.model_id == self.held_out.model_id:
            raise ValueError(
                f"--held-out {options.held_out}: the critic that guides; give one trained with another seed"
            )
        self.side = self.generator.config.model.image_size
        self.source = store.open_split(options.data, options.split)

    def prompts(self) -> list[str]:
        """The first distinct prompts of the split."""
        prompts: dict[str, None] = {}
        for number in range(len(self.source)):
            prompts.setdefault(self.source[number].prompt)
            if len(prompts) == self.options.prompts:
                return list(prompts)
        raise ValueError(
            f"--prompts {self.options.prompts}: {self.options.data} has {len(prompts)} distinct prompts in its split "
            f"{self.options.split!r}; ask for fewer, or prepare a larger split"
        )

    def judged(self, pictures: Sequence[np.ndarray], prompts: Sequence[str]) -> np.ndarray:
        """Scores float32 [2,N,4] by the critic and the held-out one."""
        options = dict(batch_size=self.options.batch, progress=False)
        return np.stack([np.asarray(one(list(pictures), list(prompts), **options).scores) for one in self.critics])

    @property
    def critics(self) -> tuple[Any, Any]:
        return self.critic, self.held_out

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        description: str,
        energy: Callable[[list[str]], Any] | None = None,
        options: GuidanceOptions = GuidanceOptions(),
    ) -> np.ndarray:
        """Pictures uint8 [N,S,S,3], one per prompt and seed; `energy` is a function of the prompts of a batch."""
        pictures = []
        for rows in self._batches(len(prompts), description):
            texts = [prompts[row] for row in rows]
            generated = self.generator(
                texts,
                seeds=[seeds[row] for row in rows],
                num_inference_steps=self.options.num_inference_steps,
                batch_size=len(rows),
                guidance_scale=self.options.guidance_scale,
                energy=None if energy is None else energy(texts),
                options=options,
            )
            pictures.append(generated.uint8)
        return np.concatenate(pictures)[: len(prompts)]

    def _batches(self, count: int, description: str) -> Iterator[list[int]]:
        """Rows, equally many at a time; copies of the last row fill the last batch, so that its shape stays."""
        size = min(self.options.batch, count)
        starts = range(0, count, size)
        for start in track(starts, description, console=Console(stderr=True), transient=True):
            yield [min(row, count - 1) for row in range(start, start + size)]


def candidates(study: Study, prompts: list[str]) -> np.ndarray:
    """Unguided pictures uint8 [N,8,S,S,3]; the first of each prompt is the one that guidance starts from."""
    number = CANDIDATES if "selection" in study.options.only else 1
    texts = [prompt for prompt in prompts for _ in range(number)]
    flat = study.generate(texts, _seeds(study, len(prompts), number).ravel(), "making candidates")
    return flat.reshape(len(prompts), number, *flat.shape[1:])


def _seeds(study: Study, prompts: int, number: int) -> np.ndarray:
    first = study.options.seed + CANDIDATES * np.arange(prompts, dtype=np.uint32)
    return first[:, None] + np.arange(number, dtype=np.uint32)


def guide(study: Study, prompts: list[str], unguided: np.ndarray) -> list[Comparison]:
    """The same prompts and noise with guidance."""
    options = study.options
    names = ("scale", "window", "recurrences", "backward_steps", "through_denoiser")
    guided = study.generate(
        prompts,
        _seeds(study, len(prompts), 1).ravel(),
        "guiding",
        energy=lambda texts: energy.score(study.critic, texts, options.score),
        options=GuidanceOptions(**{name: getattr(options, name) for name in names}),
    )
    shown = Shown(("unguided", "guided"), prompts, [unguided, guided])
    return [
        Comparison("guidance", options.score, study.judged(unguided, prompts), study.judged(guided, prompts), shown)
    ]


def repair(study: Study) -> list[Comparison]:
    """Damaged scenes: original, mask, and the best of four repaintings and the original."""
    options = study.options
    scenes = list(damaged(study))
    paint = steer.painter(
        study.generator, options.num_inference_steps, ahead=REPAINTED, guidance_scale=options.guidance_scale
    )
    critic = functools.partial(study.critic, batch_size=1 + REPAINTED)  # compiled once
    mask_options = steer.MaskOptions(threshold=options.threshold)
    results = []
    for number, (picture, prompt) in enumerate(
        track(scenes, "repairing", console=Console(stderr=True), transient=True)
    ):
        seed = options.seed + REPAINTED * number
        results.append(steer.repair(paint, picture, prompt, REPAINTED, critic=critic, seed=seed, options=mask_options))
    prompts, originals = [prompt for _, prompt in scenes], [picture for picture, _ in scenes]
    before = study.judged(originals, prompts)
    best = study.judged([one.image for one in results], prompts)
    # A scene without a mask is not repainted, so it counts as its own repainting.
    tries = [one.candidates[1 + k] if one.seeds else one.image for one in results for k in range(REPAINTED)]
    every = study.judged(tries, [prompt for prompt in prompts for _ in range(REPAINTED)])
    mean = every.reshape(2, len(scenes), REPAINTED, len(SCORES)).mean(2)
    masks = [np.repeat(one.mask.pixels[..., None], 3, -1) * np.uint8(255) for one in results]
    shown = Shown(("damaged", "mask", "repaired"), prompts, [originals, masks, [one.image for one in results]])
    kept = {
        "without a mask": sum(not one.seeds for one in results),
        "unchanged": sum(one.chosen == 0 for one in results),
    }
    return [
        Comparison("repair, best of 4", "plausibility", before, best, shown, kept),
        Comparison("repair, any of 4", "plausibility", before, mean),
    ]


def damaged(study: Study) -> Iterator[tuple[np.ndarray, str]]:
    """The first scenes with planted damage, one per prompt, uint8 at the generator's size, with their prompts."""
    file = pathlib.Path(study.options.data) / f"truth-{study.options.split}.jsonl"
    if not file.is_file():
        raise ValueError(f"{file} is missing: repair needs scenes whose damage is known, of rahf prepare synthetic")
    seen: set[str] = set()
    for number, line in enumerate(file.read_text().splitlines()):
        truth = json.loads(line)
        if truth["damage"] and truth["prompt"] not in seen and len(seen) < study.options.prompts:
            seen.add(truth["prompt"])
            record = study.source[number]
            yield image_lib.decode_resized(record.image, study.side, what=record.uid), record.prompt
    if len(seen) < study.options.prompts:
        raise ValueError(
            f"--prompts {study.options.prompts}: {file} has {len(seen)} prompts with damage; ask for fewer"
        )


def select(study: Study, prompts: list[str], pictures: np.ndarray) -> list[Comparison]:
    """The best of eight by the critic, against one of them drawn at random, whose expected score is the mean."""
    number = pictures.shape[1]
    texts = [prompt for prompt in prompts for _ in range(number)]
    flat = pictures.reshape(-1, *pictures.shape[2:])
    scores = study.judged(flat, texts)
    chosen = steer.select(
        scores[0], groups=np.repeat(np.arange(len(prompts)), number).tolist(), key=study.options.score
    ).indices
    every = scores.reshape(2, len(prompts), number, len(SCORES)).mean(2)
    drawn = np.random.default_rng(study.options.seed).integers(number, size=len(prompts))
    random = pictures[np.arange(len(prompts)), drawn]
    captions = {0: scores.reshape(2, len(prompts), number, -1)[:, np.arange(len(prompts)), drawn]}
    shown = Shown(("random", "best of 8"), prompts, [random, flat[chosen]], captions)
    return [Comparison("selection, best of 8", study.options.score, every, scores[:, chosen], shown)]


def run(options: Options) -> dict[str, Any]:
    """Does the study and writes its results; returns what is printed."""
    began = time.perf_counter()
    study = Study(options)
    prompts, comparisons = study.prompts(), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ModelMismatch)  # two critics side by side are the point
        pictures = candidates(study, prompts) if {"guidance", "selection"} & set(options.only) else None
        parts: dict[str, Callable[[], list[Comparison]]] = {
            "guidance": lambda: guide(study, prompts, pictures[:, 0]),
            "repair": lambda: repair(study),
            "selection": lambda: select(study, prompts, pictures),
        }
        for name in options.only:
            comparisons += parts[name]()
    return _write(study, comparisons, time.perf_counter() - began)


def _write(study: Study, comparisons: list[Comparison], seconds: float) -> dict[str, Any]:
    out = pathlib.Path(study.options.out)
    result = {
        "options": dataclasses.asdict(study.options),
        "models": {name: one.model_id for name, one in zip(("critic", "held out"), study.critics)},
        "results": [comparison.result() for comparison in comparisons],
        "seconds": round(seconds, 1),
    }
    files.write(str(out / "circle.json"), (json.dumps(result, indent=2) + "\n").encode())
    files.write(str(out / "table.md"), circle_report.table(comparisons).encode())
    shown = [comparison for comparison in comparisons if comparison.shown]
    files.write(str(out / "circle.png"), _png(circle_report.overview(shown)))
    for comparison in shown:
        name = comparison.name.split(",")[0]
        files.write(str(out / f"{name}.png"), _png(circle_report.everything(comparison)))
    return result


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


if __name__ == "__main__":
    compile_cache.enable()  # other options compile little anew
    try:
        print(json.dumps(run(tyro.cli(Options))))
    except (CheckpointError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
