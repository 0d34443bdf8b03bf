"""The small saliency model, second part: the tower from stride 8 on is trained, too, after `lite_frozen.py`.

Command:   rahf train configs/saliency/lite_frozen.py
           rahf train configs/saliency/lite.py
           rahf evaluate runs/saliency-lite --split test
Hardware:  2 CPU cores
Time and result: docs/benchmarks.md
"""

import dataclasses
import pathlib

from rahf import config as config_lib
from rahf.config import Config, OptimizerConfig, StartConfig

#: Stages 3 to 6 of the tower, and the decoder. The finer maps are those of ImageNet, computed once.
TRAINED = (
    "tower/stage_3_*",
    "tower/stage_4_*",
    "tower/stage_5_*",
    "tower/stage_6_*",
    "level_*",
    "scale",
    "blur",
    "centre",
)


def config() -> Config:
    """About 8 epochs of 500 pictures."""
    base = config_lib.load(str(pathlib.Path(__file__).with_name("lite_frozen.py")))
    return dataclasses.replace(
        base,
        workdir="runs/saliency-lite",
        optimizer=OptimizerConfig(
            learning_rate=7e-4,
            schedule="cosine",
            warmup_steps=25,
            final_fraction=0.02,
            weight_decay=0.01,
            b2=0.99,
            ema_decay=0.98,
            trainable=TRAINED,
        ),
        start=StartConfig(model=base.workdir),
        train=dataclasses.replace(base.train, steps=380),
    )
