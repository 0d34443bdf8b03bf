"""The small critic that comes with rahf: what lite_tower.py trained, trained on, with more weight on words and scores.

Command:   rahf train configs/critic/lite.py
           rahf train configs/critic/lite_tower.py
           rahf train configs/critic/lite_continued.py
           rahf evaluate runs/lite-continued --data data/rehearsal
Hardware:  2 CPU cores
Time and result: docs/benchmarks.md
"""

import dataclasses
import pathlib

from rahf import config as config_lib
from rahf.config import StartConfig


def config() -> config_lib.Config:
    """Nothing begins anew; only the optimizer's state does."""
    tower = config_lib.load(str(pathlib.Path(__file__).with_name("lite_tower.py")))
    return dataclasses.replace(
        tower,
        workdir="runs/lite-continued",
        start=StartConfig(model="runs/lite-tower"),
        loss=dataclasses.replace(tower.loss, score_weight=150.0, keyword_weight=10.0),
        optimizer=dataclasses.replace(tower.optimizer, warmup_steps=40, final_fraction=0.01, ema_decay=0.99),
        train=dataclasses.replace(tower.train, steps=800),
    )
