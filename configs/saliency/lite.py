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
from rahf.config import AugmentConfig, Config, OptimizerConfig, SaliencyLossConfig, StartConfig

#: Stages 3 to 6 of the tower, and the decoder. The finer maps are those of ImageNet.
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
    """Crops and colours against overfitting; averaged weights. The better one of two seeds on `dev`. Of a run the best
    evaluation is kept, in both step 450."""
    base = config_lib.load(str(pathlib.Path(__file__).with_name("lite_frozen.py")))
    return dataclasses.replace(
        base,
        workdir="runs/saliency-lite",
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
            # More weight on CC and KLD: without it, `dev` has NSS to spare.
            base.model,
            loss=SaliencyLossConfig(cc_weight=4.0, nss_weight=0.5),
        ),
        optimizer=OptimizerConfig(
            learning_rate=6e-4,
            schedule="cosine",
            warmup_steps=25,
            final_fraction=0.02,
            weight_decay=0.05,
            b2=0.99,
            ema_decay=0.99,
            trainable=TRAINED,
        ),
        start=StartConfig(model=base.workdir),
        train=dataclasses.replace(
            base.train, steps=1200, seed=2, cache_tower=False, eval_every=150, checkpoint_every=50
        ),
    )
