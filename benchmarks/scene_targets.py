"""Target maps that prompts of drawn scenes leave room for: where simulated viewers look at other scenes of their kind.

    python benchmarks/scene_targets.py --data data/looked64 --prompts prompts.txt --out targets
    rahf gazefusion evaluate runs/gazefusion --prompts prompts.txt --maps targets/* --out compared ...

For every prompt it takes the densities of other scenes of the split that show as many things in the same relation,
whatever their colours and shapes; where there are too few of them, scenes of that relation with other numbers.
OUT/0, OUT/1, … hold one map per prompt each.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib

import numpy as np
import tyro
from PIL import Image

from data_pipelines import store
from data_pipelines.gaze import density
from rahf.images.resize import resize
from rahf.steer.generate_files import prompts_of_file


@dataclasses.dataclass(frozen=True)
class Options:
    """Writes target maps."""

    data: str  # of `rahf prepare synthetic --viewers N`
    prompts: str  # text file, one of the split's prompts per line
    out: str  # folder to make
    split: str = "test"
    maps: int = 4  # for each prompt
    size: int = 64  # of a map in pixels
    seed: int = 0


def kinds(shown: dict) -> tuple[tuple, tuple]:
    """How many things of each group, and how they lie; and without the numbers."""
    counts, relation = tuple(group["count"] for group in shown["groups"]), shown["relation"]
    return (counts, relation), (len(counts), relation)


def main(options: Options) -> None:
    """Writes the maps."""
    source = store.open_split(options.data, options.split)
    with open(pathlib.Path(options.data) / f"truth-{options.split}.jsonl", encoding="utf-8") as file:
        truth = {line["uid"]: line for line in map(json.loads, file)}
    scenes = collections.defaultdict(list)  # places in the split of each kind of picture
    asked = {}
    for number in range(len(source)):
        record = source[number]
        for kind in kinds(truth[record.uid]["shown"]):
            scenes[kind].append(number)
        asked.setdefault(record.prompt, (number, kinds(truth[record.uid]["asserted"])))
    rng, out, loose = np.random.default_rng(options.seed), pathlib.Path(options.out), 0
    prompts = prompts_of_file(options.prompts)
    for row, prompt in enumerate(prompts):
        if prompt not in asked:
            raise SystemExit(f"{options.prompts}: {prompt!r} is no prompt of {options.data}, split {options.split}")
        own, wanted = asked[prompt]
        exact, like = ([number for number in scenes[kind] if number != own] for kind in wanted)
        others = exact if len(exact) >= options.maps else like
        loose += others is like
        if len(others) < options.maps:
            raise SystemExit(f"{prompt!r}: only {len(others)} other scenes of its kind; draw more of them")
        for place, number in enumerate(rng.choice(others, options.maps, replace=False)):
            heat = np.maximum(resize(density.decode(source[int(number)].saliency), (options.size,) * 2), 0)
            file = out / str(place) / f"{row:03d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.round(heat / heat.max() * 255).astype(np.uint8)).save(file)
    print(f"{out}: {options.maps} maps for each of {len(prompts)} prompts, of {loose} with other numbers of things")


if __name__ == "__main__":
    main(tyro.cli(Options))
