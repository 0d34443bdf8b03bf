"""Attention across frequencies, the third stage of a motion model; see demo_autoencoder.py.

Command:   rahf train configs/motion/demo_frequency.py
Hardware:  1 CPU core, about 6 minutes
Result:    loss 0.064 and 0.078 on dev (two seeds); the motion that it draws is measured in docs/motion.md
"""

import dataclasses
import pathlib

from rahf import config as config_lib
from rahf.config import Config, StartConfig


def config() -> Config:
    """All else is frozen; all frequencies of few clips per step."""
    demo = config_lib.load(str(pathlib.Path(__file__).with_name("demo_autoencoder.py")))
    return dataclasses.replace(
        demo,
        workdir="runs/motion_frequency",
        data=dataclasses.replace(demo.data, batch_size=2, eval_batch_size=4),
        model=dataclasses.replace(demo.model, stage="frequency"),
        start=StartConfig(model="runs/motion_diffusion"),
        optimizer=dataclasses.replace(demo.optimizer, learning_rate=1e-3, ema_decay=0.998),
        train=dataclasses.replace(demo.train, steps=1000),
    )
