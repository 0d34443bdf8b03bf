"""The small critic that comes with rahf: what lite.py trained, trained on together with the tower.

Command:   rahf train configs/critic/lite.py
           rahf train configs/critic/lite_tower.py
           rahf evaluate runs/lite-tower --data data/rehearsal
Hardware:  2 CPU cores
Time and result: docs/benchmarks.md
"""

import dataclasses
import pathlib

from rahf import config as config_lib
from rahf.config import AugmentConfig, OptimizerConfig, StartConfig

#: Stages of the tower behind stride 4, and every other part. The finest maps stay those of ImageNet.
TRAINED = (
    "tower/stage_2_*", "tower/stage_3_*", "tower/stage_4_*", "tower/stage_5_*", "tower/stage_6_*",
    "embedding", "encoder", "decoder", "heatmap_*", "score_*", "position", "projection", "summary", "tags",
)  # fmt: skip


def config() -> config_lib.Config:
    """Nothing is cached: the tower moves, and no picture is seen twice alike. Nothing begins anew."""
    lite = config_lib.load(str(pathlib.Path(__file__).with_name("lite.py")))
    return dataclasses.replace(
        lite,
        workdir="runs/lite-tower",
        start=StartConfig(model="runs/lite"),
        data=dataclasses.replace(
            lite.data,
            batch_size=12,
            augment=AugmentConfig(
                crop_probability=0.5,
                crop_keep=(0.75, 1.0),
                crop_keeps_mass=0.9,
                flip_probability=0.5,
                photometric_probability=0.25,
                contrast=(0.8, 1.15),
                saturation=(0.8, 1.15),
                grey_probability=0.0,
            ),
        ),
        model=dataclasses.replace(lite.model, tower_rate=0.5),
        loss=dataclasses.replace(lite.loss, heatmap_weight=300.0, place_weight=0.01, score_weight=150.0),
        optimizer=OptimizerConfig(
            learning_rate=1e-3,
            schedule="cosine",
            warmup_steps=40,
            final_fraction=0.01,
            b2=0.98,
            weight_decay=0.05,
            ema_decay=0.99,
            trainable=TRAINED,
        ),
        train=dataclasses.replace(
            lite.train,
            steps=1500,
            cache_tower=False,
            log_every=10,
            eval_every=500,
            eval_examples=100,
            checkpoint_every=100,
        ),
    )
