"""Stable Diffusion fine-tuned by policy gradient on a critic's score (DDPO); no gradient runs through the critic.

Command:   rahf import stable-diffusion FOLDER models/sd15
           rahf train configs/diffusion/ddpo.py --workdir runs/ddpo
Data:      prompts/train.txt and prompts/eval.txt, one prompt a line
Critics:   "lite" guides; runs/judge, a critic that was trained apart from it, is held out
Not yet run at this size: 50 steps, eta 1, guidance 5 and clip range 1e-4 are published (Black et al. 2024); batch size,
           rank and learning rate are guesses.
Use:       rahf.diffusion.load("runs/ddpo")

`--feedback.ddpo.place_share 0.5` spreads half of each advantage over the places of the latents by the critic's
heatmaps.
"""

import dataclasses
import pathlib

from rahf import config as config_lib
from rahf.config import Config


def config() -> Config:
    """As `draft.py`, with steps that draw noise, and eight pictures of each prompt."""
    draft = config_lib.load(str(pathlib.Path(__file__).parent / "draft.py"))
    return dataclasses.replace(
        draft,
        workdir="runs/ddpo",
        data=dataclasses.replace(draft.data, batch_size=32),
        feedback=dataclasses.replace(draft.feedback, method="ddpo", pictures_per_prompt=8, guidance_scale=5.0, eta=1.0),
    )
