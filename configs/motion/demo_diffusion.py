"""Latent diffusion over single frequencies, the second stage of a motion model; see demo_autoencoder.py.

Command:   rahf train configs/motion/demo_diffusion.py
Hardware:  1 CPU core, about half an hour
Result:    loss 0.066 and 0.080 on dev (two seeds)
"""

import dataclasses
import pathlib

from rahf import config as config_lib
from rahf.config import Config, StartConfig


def config() -> Config:
    """The autoencoder is frozen; one frequency of each clip per step."""
    demo = config_lib.load(str(pathlib.Path(__file__).with_name("demo_autoencoder.py")))
    return dataclasses.replace(
        demo,
        workdir="runs/motion_diffusion",
        model=dataclasses.replace(demo.model, stage="diffusion"),
        start=StartConfig(model="runs/motion_autoencoder"),
        data=dataclasses.replace(demo.data, batch_size=32),
        optimizer=dataclasses.replace(demo.optimizer, learning_rate=2e-3, ema_decay=0.998),
        train=dataclasses.replace(demo.train, steps=3500),
    )
