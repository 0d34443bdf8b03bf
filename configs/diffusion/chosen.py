"""Adapters of Stable Diffusion on its own best pictures, which a critic has chosen (RAHF section 5).

Command:   rahf import stable-diffusion FOLDER models/sd15
           rahf generate models/sd15 --prompt … --out candidates
           rahf select lite candidates.jsonl --out manifest.jsonl --chosen chosen.jsonl
           rahf train configs/diffusion/chosen.py --workdir runs/chosen
Data:      chosen.jsonl, and prompts/eval.txt, one prompt a line
Critics:   "lite" has chosen, so it guides; runs/judge, a critic that was trained apart from it, is held out
Not yet run at this size: rank, learning rate and number of steps are guesses.
Use:       rahf.diffusion.load("runs/chosen")
"""

import dataclasses
import pathlib

from rahf import config as config_lib
from rahf.config import Config


def config() -> Config:
    """As `draft.py`, with the usual loss on pictures."""
    draft = config_lib.load(str(pathlib.Path(__file__).parent / "draft.py"))
    return dataclasses.replace(
        draft,
        workdir="runs/chosen",
        feedback=dataclasses.replace(draft.feedback, method="chosen", chosen="chosen.jsonl", prompts=""),
    )
