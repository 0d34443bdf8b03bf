"""The small saliency model, second part, against overfitting: as `lite.py`, with crops and colours, and other weights.

Command:   rahf train configs/saliency/lite_frozen.py
           rahf train configs/saliency/lite_augmented.py
           rahf evaluate runs/saliency-lite-augmented --split test
Hardware:  2 CPU cores
Time and result: docs/benchmarks.md
"""

import dataclasses
import pathlib

from rahf import config as config_lib
from rahf.config import AugmentConfig, Config, SaliencyLossConfig


def config() -> Config:
    """About 8 epochs of 500 pictures. The rate stays: the averaged weights are evaluated, wherever the run ends."""
    base = config_lib.load(str(pathlib.Path(__file__).with_name("lite.py")))
    return dataclasses.replace(
        base,
        workdir="runs/saliency-lite-augmented",
        data=dataclasses.replace(
            base.data,
            augment=AugmentConfig(
                crop_probability=0.6,
                crop_keep=(0.7, 1.0),
                crop_keeps_mass=0.5,
                photometric_probability=0.6,
                brightness=0.15,
                contrast=(0.7, 1.2),
                hue=0.04,
                saturation=(0.5, 1.3),
                jpeg_quality=(60, 100),
                grey_probability=0.1,
            ),
        ),
        model=dataclasses.replace(
            # More weight on CC and KLD: on `dev` the model of `lite.py` has NSS to spare.
            base.model,
            loss=SaliencyLossConfig(cc_weight=4.0, nss_weight=0.5),
        ),
        optimizer=dataclasses.replace(
            base.optimizer, learning_rate=6e-4, schedule="constant", weight_decay=0.05, ema_decay=0.985
        ),
        train=dataclasses.replace(base.train, steps=400, seed=1, cache_tower=False, eval_every=60, checkpoint_every=60),
    )
