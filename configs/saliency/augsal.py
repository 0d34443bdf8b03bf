r"""Augsal: where people look, and what the properties of a patch are, read out of a frozen Stable Diffusion.

Command:   rahf import stable-diffusion FOLDER models/sd15
           rahf prepare saliency --layout salicon --folder salicon --out data/salicon
           rahf train configs/saliency/augsal.py
Hardware:  GPUs; batch 8 of 512 x 512 pixels in all
Result:    not yet run
Use:       rahf.load("runs/augsal")(pictures).saliency
           rahf edit photo.jpg --model runs/augsal --prompt "a cat on a sofa" --property contrast --out edits/
"""

from rahf.config import AugsalConfig, Config, DataConfig, OptimizerConfig, StartConfig, TrainConfig


def config() -> Config:
    """Steps, learning rate and weight decay as published (spec 7.4); the batch is ours, the published one is 1."""
    return Config(
        workdir="runs/augsal",
        data=DataConfig(path="data/salicon", batch_size=8, eval_batch_size=8, augment=None),
        model=AugsalConfig(),
        optimizer=OptimizerConfig(
            learning_rate=1e-4, schedule="constant", warmup_steps=0, weight_decay=0.01, trainable=("readouts/*",)
        ),
        start=StartConfig(model="models/sd15"),
        train=TrainConfig(
            steps=22_000, eval_every=2000, eval_examples=500, checkpoint_every=2000, best_metric="saliency/cc"
        ),
    )
