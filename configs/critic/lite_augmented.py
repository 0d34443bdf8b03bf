"""What lite_continued.py trained, trained on with stronger changes of the pictures: no better, and not shipped.

Command:   rahf train configs/critic/lite.py
           rahf train configs/critic/lite_tower.py
           rahf train configs/critic/lite_continued.py
           rahf train configs/critic/lite_augmented.py
           rahf evaluate runs/lite-augmented --data data/rehearsal
Hardware:  2 CPU cores
Time and result: docs/benchmarks.md, the critic that ships
"""

import dataclasses
import pathlib

from rahf import config as config_lib
from rahf.config import AugmentConfig, StartConfig


def config() -> config_lib.Config:
    """Smaller crops, stronger colours, and JPEG of lower quality; nothing begins anew but the optimizer's state."""
    continued = config_lib.load(str(pathlib.Path(__file__).with_name("lite_continued.py")))
    return dataclasses.replace(
        continued,
        workdir="runs/lite-augmented",
        start=StartConfig(model="runs/lite-continued"),
        data=dataclasses.replace(
            continued.data,
            augment=AugmentConfig(
                crop_probability=0.6,
                crop_keep=(0.7, 1.0),
                crop_keeps_mass=0.9,
                photometric_probability=0.4,
                brightness=0.08,
                contrast=(0.75, 1.15),
                saturation=(0.75, 1.15),
                jpeg_quality=(60, 100),
                grey_probability=0.0,
            ),
        ),
        optimizer=dataclasses.replace(continued.optimizer, learning_rate=6e-4, warmup_steps=20),
        train=dataclasses.replace(continued.train, steps=370),
    )
