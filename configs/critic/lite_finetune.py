"""The small critic that comes with rahf, trained on with your own feedback; the tower stays as it is.

Command:   rahf import exported lite runs/lite-start
           rahf prepare feedback --annotations feedback.jsonl --images pictures --out data/mine
           rahf train configs/critic/lite_finetune.py --data.path data/mine
           rahf evaluate runs/lite-mine
Hardware:  2 CPU cores
Result:    depends on your pictures; docs/your-own-feedback.md
"""

import dataclasses
import pathlib

from rahf import config as config_lib


def config() -> config_lib.Config:
    """A third of the learning rate of lite.py, and few steps: a few hundred pictures are learnt by heart soon."""
    lite, shipped = (
        config_lib.load(str(pathlib.Path(__file__).with_name(name))) for name in ("lite.py", "lite_tower.py")
    )
    trained = tuple(part for part in lite.optimizer.trainable if part != "tags")
    return dataclasses.replace(
        lite,
        workdir="runs/lite-mine",
        start=config_lib.StartConfig(model="runs/lite-start"),
        data=dataclasses.replace(lite.data, path="data/mine", tokenizer="start"),
        model=dataclasses.replace(shipped.model, tag_head=False),  # an exported file does not hold it
        loss=dataclasses.replace(lite.loss, tag_weight=0.0),
        optimizer=dataclasses.replace(lite.optimizer, learning_rate=5e-4, warmup_steps=10, trainable=trained),
        train=dataclasses.replace(lite.train, steps=200, eval_every=50, checkpoint_every=50),
    )
