"""Whether edits where people look draw more looks, by saliency models that have seen no edits.

    python benchmarks/edit_direction.py --data data/osie --models saliency-lite

Every picture gets more contrast, more brightness or a random colour where its density is highest
(`rahf.saliency.augsal.pixel_edits`). Printed: the mass that a model predicts inside that part before and after.
"""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import tyro
from saliency_table import interval

from data_pipelines import store
from data_pipelines.gaze import density
from rahf.images import load_rgb
from rahf.images.resize import resize
from rahf.saliency import loading
from rahf.saliency.augsal import pixel_edits


@dataclasses.dataclass(frozen=True)
class Options:
    """Edits pictures and looks at them."""

    data: str  # of `rahf prepare saliency` or `rahf prepare synthetic --viewers N`
    models: tuple[str, ...] = ("saliency-lite",)
    split: str = "test"
    strength: tuple[float, float] = (0.2, 0.4)  # alpha of pixels in [0,1]
    cell: int = 8  # pixels along a side of a cell of the edited part
    limit: int = 1000


def main(options: Options) -> None:
    """Prints a row of JSON for each model and kind of edit."""
    source = store.open_split(options.data, options.split)
    records = [source[number] for number in range(min(options.limit, len(source)))]
    run = jax.jit(pixel_edits.edited, static_argnums=(3, 4, 5))
    for name in options.models:
        model = loading.load(name)
        for kind, title in enumerate(pixel_edits.KINDS):
            rows = []
            for number, record in enumerate(records):
                picture = load_rgb(record.image)
                picture = picture[: len(picture) // options.cell * options.cell]
                picture = picture[:, : picture.shape[1] // options.cell * options.cell]
                grid = picture.shape[0] // options.cell, picture.shape[1] // options.cell
                looked = np.maximum(resize(density.decode(record.saliency, record.uid), grid), 0)
                key = jax.random.key(number)
                found = run(key, picture[None], looked[None].astype(np.float32), 1.0, options.strength, kind)
                if not found.counts[0]:
                    continue
                after = np.round(np.asarray(found.image[0]) * 255).astype(np.uint8)
                inside = np.kron(np.asarray(found.mask[0]), np.ones((options.cell,) * 2)) > 0
                seen = model([picture, after])
                rows.append([float(np.exp(one.log_density)[inside].sum()) for one in seen])
            before, after = np.array(rows).T
            row = {
                "model": name,
                "edit": title,
                "pictures": f"{len(rows)} of {len(records)}",
                "before": round(float(before.mean()), 4),
                "after": round(float(after.mean()), 4),
                "difference": round(float((after - before).mean()), 4),
                "interval": [round(x, 4) for x in interval(after - before, 2000)],
                "more": round(float((after > before).mean()), 3),
                "more_by_a_tenth_of_a_nat": round(float((np.log(after / before) > 0.1).mean()), 3),
            }
            print(json.dumps({"benchmark": "edit_direction", **row}), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
