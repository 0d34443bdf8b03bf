"""The demo in the paper's augmented-prompt variant: the prompt tells one heatmap head and one score head what to give.

Command:   rahf prepare synthetic --out data/demo
           rahf train configs/critic/demo_augmented.py
           rahf evaluate runs/demo_augmented
Hardware:  2 CPU cores
Result: docs/benchmarks.md, "The demo's variants"
"""

import dataclasses
import pathlib

from rahf import config as config_lib


def config() -> config_lib.Config:
    """As `demo.py`, but for the heads. Every example has all seven tasks: a head learns less from fewer labels."""
    demo = config_lib.load(str(pathlib.Path(__file__).with_name("demo.py")))
    model = dataclasses.replace(demo.model, variant="augmented-prompt", tasks_per_example=7)
    return dataclasses.replace(demo, workdir="runs/demo_augmented", model=model)
