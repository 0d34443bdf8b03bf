r"""A ControlNet by saliency maps beside Stable Diffusion 2.1-base: pictures that draw the eye where one wants it.

Command:   rahf import stable-diffusion FOLDER models/sd21-base
           rahf prepare gazefusion --images photos --captions captions.jsonl --out data/gazefusion
           rahf train configs/diffusion/gazefusion.py
Hardware:  GPUs; batch 16 of 512 x 512 pixels in all
Result:    not yet run
Use:       rahf.diffusion.save_controlnet(rahf.load("runs/gazefusion").controlnet, "models/gazefusion")
           rahf generate models/sd21-base --prompt "a red cat" --saliency map.png --controlnet models/gazefusion \
             --out seen/
"""

from rahf.config import Config, DataConfig, GazeFusionConfig, OptimizerConfig, StartConfig, TrainConfig


def config() -> Config:
    """Learning rate and batch as published (AdamW 1e-5, 16); the published run took up to 500,000 steps."""
    return Config(
        workdir="runs/gazefusion",
        data=DataConfig(path="data/gazefusion", batch_size=16, eval_batch_size=16, augment=None),
        model=GazeFusionConfig(),
        optimizer=OptimizerConfig(learning_rate=1e-5, schedule="constant", warmup_steps=0, trainable=("controlnet/*",)),
        start=StartConfig(model="models/sd21-base"),
        train=TrainConfig(
            steps=100_000,
            eval_every=5000,
            eval_examples=256,
            checkpoint_every=5000,
            best_metric="loss/total",
            best_mode="min",
        ),
    )
