"""The demo with heatmap heads that could go on to the full image side, and stop at a quarter of it.

Command:   rahf prepare synthetic --out data/demo
           rahf train configs/critic/demo_quarter.py
           rahf evaluate runs/demo_quarter
           To compare: rahf train configs/critic/demo_quarter.py --model.heatmap-head.kind full --workdir runs/demo_full
Hardware:  2 CPU cores
Result: docs/benchmarks.md, "The demo's variants"
"""

import dataclasses
import pathlib

from rahf import config as config_lib


def config() -> config_lib.Config:
    """As `demo.py`, whose own head has just the stage that leads to a quarter; two more for the full head."""
    demo = config_lib.load(str(pathlib.Path(__file__).with_name("demo.py")))
    head = dataclasses.replace(demo.model.heatmap_head, kind="quarter", up_widths=(32, 32, 16))
    model = dataclasses.replace(demo.model, heatmap_head=head)
    return dataclasses.replace(demo, workdir="runs/demo_quarter", model=model)
